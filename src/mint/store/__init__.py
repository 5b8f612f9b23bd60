"""Everything durable: the database and the checkpoint files.

Knows rows, transactions and folders; never routes, workers or tensors.
"""
