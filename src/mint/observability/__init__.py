"""What operators see of a server: metrics and logs. Imports none of ours."""
