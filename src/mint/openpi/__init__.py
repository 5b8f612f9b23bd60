"""The conventions of openpi's pi0-FAST policies: what becomes of images, states, instructions and actions.

Clients, server and engine all hold to them. Knows numpy, tokenizers and Pillow; must not import torch, nor anything
of ours. This file is light: whoever needs a part imports the module.
"""

CAMERA_LAYOUT = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
"""The cameras, in the order of an observation's image chunks."""

OPENPI_FAST_MODEL = "openpi/pi0-fast-libero-low-mem-finetune"
OPENPI_FAST_LORA_RANK = 16
