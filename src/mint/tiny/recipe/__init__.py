"""How `mint/tiny` is made: words → skills → conversations → tokenizer → training → evaluation.

Everything is drawn from seeded generators, so the recipe needs no download and can be run again at any
time.  It must not know anything of the service that later serves the model.
"""
