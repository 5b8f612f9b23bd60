"""The wire: request and response types of the Tinker protocol and their codecs.

Knows the shapes of messages; never what becomes of them.
"""
