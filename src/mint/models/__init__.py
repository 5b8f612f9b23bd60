"""Base models: transformers' own modules, entered through their extension points.

Knows tensors, layers and adapter slots; never runs, requests or owners.
"""
