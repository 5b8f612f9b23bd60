"""Where the built-in base model lies.

Knows a name and a folder.  Must not import torch or transformers: `import mint` stays light, and whoever
loads the weights decides with what.
"""

from pathlib import Path

NAME = "mint/tiny"


def model_path() -> Path:
    """Return the folder of weights, tokenizer and configuration shipped inside the package."""
    return Path(__file__).resolve().parent / "weights"
