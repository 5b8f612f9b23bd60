"""OpenAI's API over base models and adapter revisions: models, completions, chat completions.

Requests live as long as their HTTP connection: they are not journaled, and a client that goes away ends them.
"""
