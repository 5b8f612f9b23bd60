"""Finding and loading a base model: a local folder, a Hugging Face name, or the built-in `mint/tiny`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import cached_file, logging

from mint.errors import ModelLoadError
from mint.models.attention import ATTENTION_NAME
from mint.models.causal_lm import CausalLM


def locate(location: str) -> Path:
    """The local folder of a model, fetched from the Hugging Face hub if it is not there yet.

    Raises:
        ModelLoadError: neither a folder with a config.json nor a name that can be fetched.
    """
    folder = Path(location).expanduser()
    if (folder / "config.json").is_file():
        return folder.resolve()
    if folder.is_dir():
        raise ModelLoadError(f"{location} is a folder without a config.json")
    try:
        found = cached_file(location, "config.json")
    except OSError as error:
        raise ModelLoadError(
            f"{location} is no local folder, and the Hugging Face hub did not give it: {error}"
        ) from error
    assert found is not None
    return Path(found).parent


def load(location: str, dtype: torch.dtype = torch.float32) -> CausalLM:
    """Load a decoder-only model in evaluation mode.

    Raises:
        ModelLoadError: the model does not load, or needs attention that packed batches cannot give it.
    """
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(location)
        _refuse_unsupported(location, config)
        model = AutoModelForCausalLM.from_pretrained(
            location, config=config, dtype=dtype, attn_implementation=ATTENTION_NAME
        )
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{location} does not load: {error}") from error
    return CausalLM(model.eval())


def _refuse_unsupported(location: str, config: Any) -> None:
    """Serving a model with part of its attention left out would give wrong numbers without saying so."""
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    if layers != {"full_attention"}:
        raise ModelLoadError(
            f"{location} has layers of type {sorted(layers)}; only full_attention is served"
        )
    for field in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, field, None):
            raise ModelLoadError(f"{location} sets {field}, which is not served")


def load_tokenizer(location: str) -> Any:
    """The tokenizer beside a model."""
    try:
        return AutoTokenizer.from_pretrained(location)
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{location} has no tokenizer that loads: {error}") from error


def stop_token_ids(location: str, config: Any, tokenizer: Any) -> tuple[int, ...]:
    """Tokens that end a sample unless the request says otherwise: all that the model's files declare."""
    declared: list[object] = [getattr(config, "eos_token_id", None), tokenizer.eos_token_id]
    try:
        declared.append(GenerationConfig.from_pretrained(location).eos_token_id)
    except OSError:
        pass  # the file is optional
    return tuple(sorted({token for entry in declared for token in _as_ids(entry)}))


def _as_ids(entry: object) -> Iterable[int]:
    if isinstance(entry, int):
        return (entry,)
    return [token for token in entry if isinstance(token, int)] if isinstance(entry, list) else ()
