"""Uploads of checkpoints. Whatever is in one was written by a stranger.

Its life: `body` puts the archive into a file as it comes; `archive` takes the files out of it that a checkpoint has;
`adapter` and `optimizer` check every number of them and write them anew; `checkpoint` gives them a name.
"""
