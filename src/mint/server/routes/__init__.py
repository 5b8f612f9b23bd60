"""HTTP routes, one module per noun. A route reads, checks, asks a service and answers, no more."""
