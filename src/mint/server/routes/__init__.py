"""HTTP routes, one module per noun. A route reads, checks, asks a service, answers; it decides nothing else."""
