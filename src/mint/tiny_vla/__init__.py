"""Where the built-in base of robot policies lies, in two geometries of the same weights.

Knows names and folders. Must not import torch or transformers: whoever loads the weights decides with what.
"""

from pathlib import Path

NAME = "openpi/pi0-fast-tiny"


def model_path(tokens_per_image: int = 16) -> Path:
    """Return the folder of weights, tokenizers, statistics and configuration shipped inside the package.

    Args:
        tokens_per_image: 16, as it was trained; or 256, as many as an image has in pi0-FAST.

    Raises:
        ValueError: it is neither.
    """
    if tokens_per_image not in (16, 256):
        raise ValueError(f"tokens_per_image is {tokens_per_image}; there are weights for 16 and 256")
    return Path(__file__).resolve().parent / ("weights" if tokens_per_image == 16 else "weights_256")
