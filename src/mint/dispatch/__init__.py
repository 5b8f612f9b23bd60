"""Between the journal and the engine workers: order, routing, recovery.

Knows commands, streams and workers; never HTTP, SQL or tensors.
"""
