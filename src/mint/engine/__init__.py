"""The engine worker: trains and samples many adapters on one resident base model.

Knows commands, runs and tensors; never HTTP, SQL, owners or text. `core` is torch-free: dispatch shares it.
"""
