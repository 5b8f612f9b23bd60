"""What a robot policy brings beside its weights: the tokenizers of its text and of its actions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PretrainedConfig
from transformers.utils.hub import cached_file

from mint.engine.core import PolicyInfo
from mint.errors import ModelLoadError
from mint.openpi.fast import FastCodec, read_tokenizer
from mint.openpi.prompts import FAST_FOLDER, PolicyTokens

LIBERO_HORIZON, LIBERO_ACTIONS = 10, 7
"""Of pi0-FAST on LIBERO, where the codec's files do not say for what chunks it is."""

TEXT_TOKENIZER, ACTION_TOKENIZER = "google/paligemma-3b-pt-224", "physical-intelligence/fast"
"""On the hub, for a folder that has none of its own."""


def read_policy(location: str, folder: Path, vocab_size: int) -> tuple[PolicyInfo, tuple[int, ...]]:
    """The policy of a model's folder, and the tokens that end what it says.

    Raises:
        ModelLoadError: a tokenizer is missing or damaged, or does not fit the vocabulary.
    """
    config, _ = PretrainedConfig.get_config_dict(location)
    try:
        text = _folder_of(folder, config.get("text_tokenizer_name", TEXT_TOKENIZER))
        actions = _folder_of(folder / FAST_FOLDER, config.get("action_tokenizer_name", ACTION_TOKENIZER))
        codec = FastCodec.load(actions)
        tokens = PolicyTokens(read_tokenizer(text), codec, vocab_size)
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{location} cannot act: {error}") from error
    shape = codec.horizon or LIBERO_HORIZON, codec.action_dim or LIBERO_ACTIONS
    return PolicyInfo(*shape, text, actions), (tokens.eos_id,)


def _folder_of(folder: Path, name: Any) -> Path:
    """The folder, if it has a tokenizer, or where the hub's of that name is."""
    if (folder / "tokenizer.json").is_file():
        return folder
    cached_file(name, "processor_config.json", _raise_exceptions_for_missing_entries=False)
    found = cached_file(name, "tokenizer.json")
    assert found is not None
    return Path(found).parent
