"""The service under a seeded simulation: its own code, in a world in which everything that can go wrong does.

`python -m tests.simulation --help`. A schedule is one seed: the programs of a few clients, and what happens to them.
"""
