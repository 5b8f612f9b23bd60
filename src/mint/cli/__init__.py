"""The `mint` command."""
