"""The server process: HTTP routes over the store and the dispatcher.

May import everything to the right of it in the layer diagram, and never torch.
"""
