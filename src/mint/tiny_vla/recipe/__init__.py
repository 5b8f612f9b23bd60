"""How the built-in base of robot policies was made: `python -m mint.tiny_vla.recipe`."""
