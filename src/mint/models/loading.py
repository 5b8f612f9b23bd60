"""Finding and loading a base model: a local folder, a Hugging Face name, or the built-in `mint/tiny`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging
from transformers.utils.hub import cached_file

from mint.errors import ModelLoadError
from mint.models.attention import ATTENTION_NAME, PackedCausal
from mint.models.causal_lm import CausalLM
from mint.models.experts import eager_experts
from mint.models.paligemma import is_paligemma, read_paligemma
from mint.models.seeing import ATTENTION, channels_of, is_llava, read_checked, read_llava
from mint.models.vision import ImageEncoder, Insert

SERVED_LAYERS = {"full_attention", "sliding_attention"}

LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
"""Rotary embeddings that change with the longest sequence: one request of a batch would change the others."""

PROBE_LENGTHS = (5, 3)


def locate(location: str) -> Path:
    """The local folder of a model, fetched from the Hugging Face hub if it is not there yet.

    Raises:
        ModelLoadError: neither a folder with a config.json nor a name that can be fetched.
    """
    folder = Path(location)
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


CPU = torch.device("cpu")


def load(
    location: str, dtype: torch.dtype = torch.float32, device: torch.device = CPU, *, checkpointing: bool = False
) -> CausalLM:
    """Load a decoder-only model, PaliGemma or LLaVA in evaluation mode; for `checkpointing` see `CausalLM`.

    Raises:
        ModelLoadError: the model does not load, or needs something that packed batches cannot give it.
    """
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        files, _ = PretrainedConfig.get_config_dict(location)
        model = _read(location, files, dtype).to(device).eval()  # type: ignore[arg-type]
        images = _image_encoder(location, files, model)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelLoadError(f"{location} does not load: {error}") from error
    probe = _Probe(model) if images is None else _SeeingProbe(model, images)
    served = CausalLM(model, images=images, checkpointing=checkpointing)
    probe.compare(location, served)
    return served


def _image_encoder(location: str, files: dict[str, Any], model: PreTrainedModel) -> ImageEncoder | None:
    """Of a model that sees."""
    if is_paligemma(files):
        return ImageEncoder(model, (0.5,) * 3, (0.5,) * 3, sees_whole=True)
    return ImageEncoder(model, *channels_of(location), sees_whole=False) if is_llava(files) else None


def _read(location: str, files: dict[str, Any], dtype: torch.dtype) -> PreTrainedModel:
    """A model as transformers loads it, with our attention.

    Raises:
        ModelLoadError: the files have no weights for a part of it.
    """
    if is_paligemma(files) or is_llava(files):
        seeing = read_paligemma(location, files, dtype) if is_paligemma(files) else read_llava(location, dtype)
        _refuse_unsupported(location, seeing.config)
        return seeing
    config = AutoConfig.from_pretrained(location)
    _refuse_unsupported(location, config)
    source = {"pretrained_model_name_or_path": location, "config": config}
    return read_checked(AutoModelForCausalLM, source, location, dtype, ATTENTION_NAME)


def _refuse_unsupported(location: str, config: Any) -> None:
    """Serving a model with part of its attention left out would give wrong numbers without saying so.

    Here is what shows only with long sequences or large logits; `_Probe` finds the rest.
    """
    config = config.get_text_config(decoder=True)
    layers = getattr(config, "layer_types", None)
    unknown = set(layers or ()) - SERVED_LAYERS
    if unknown:
        raise ModelLoadError(
            f"{location} has layers of type {sorted(unknown)}; served are {', '.join(sorted(SERVED_LAYERS))}"
        )
    for field in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, field, None):
            raise ModelLoadError(f"{location} sets {field}, which is not served")
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
    if rope in LENGTH_DEPENDENT_ROPE:
        raise ModelLoadError(f"{location} has rope_type {rope}, which is not served")


class _Probe:
    """Two short sequences, one by one through the untouched model's own forward pass.

    A model's code may do more than our way through it knows of: ALiBi, sinks, scaled logits, recurrence. And ours
    stands in for its norms, linear layers and experts, which another release may compute otherwise.
    """

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel) -> None:
        counts = [torch.arange(1, length + 1, device=model.device) for length in PROBE_LENGTHS]
        self._sequences = [count * 1009 % model.config.vocab_size for count in counts]
        model.set_attn_implementation("eager")
        with eager_experts(model):
            logits = [model(input_ids=sequence[None], use_cache=False).logits[0] for sequence in self._sequences]
        model.set_attn_implementation(ATTENTION_NAME)
        self._expected = torch.cat(logits).float()

    def compare(self, location: str, served: CausalLM) -> None:
        """The same, packed by us.

        Raises:
            ModelLoadError: the log-probabilities differ by more than rounding.
        """
        positions = torch.cat([torch.arange(len(sequence), device=served.device) for sequence in self._sequences])
        hidden = served.hidden_states(torch.cat(self._sequences), positions, PackedCausal(PROBE_LENGTHS), [])
        _check_probe(location, served, served.head.logits(hidden, []), self._expected)


class _SeeingProbe:
    """The same with an image and two pieces of text, of which the first may see all of itself and of the image."""

    @torch.no_grad()
    def __init__(self, model: Any, tower: ImageEncoder) -> None:
        config = model.config
        prefix, suffix = PROBE_LENGTHS
        size = (1, tower.size, tower.size, 3)
        self._pixels = (torch.arange(3 * tower.size**2, device=model.device) * 7919 % 256).to(torch.uint8).view(size)
        text = torch.arange(1, prefix + suffix + 1, device=model.device) * 1009 % config.text_config.vocab_size
        image = text.new_full((tower.num_tokens,), config.image_token_id)
        kinds = text.new_zeros(tower.num_tokens + len(text))
        kinds[-suffix:] = 1
        self._tokens = torch.cat([torch.zeros_like(image), text])
        self._blocks = kinds.cumsum(0).cpu().numpy().astype(np.int32) if tower.sees_whole else None
        types = {"token_type_ids": kinds[None]} if tower.sees_whole else {}
        model.set_attn_implementation("eager")
        logits = model(
            input_ids=torch.cat([image, text])[None],
            pixel_values=tower.scaled(self._pixels),
            use_cache=False,
            **types,
        ).logits[0]
        model.set_attn_implementation(ATTENTION)
        self._expected = logits.float()

    def compare(self, location: str, served: CausalLM) -> None:
        """See `_Probe.compare`."""
        assert served.images is not None
        features = served.images.encode(self._pixels)[0]
        inserts = [Insert(torch.arange(len(features), device=served.device), features)]
        length = len(self._tokens)
        plan = PackedCausal([length], blocks=[self._blocks])
        positions = torch.arange(length, device=served.device)
        hidden = served.hidden_states(self._tokens, positions, plan, [], inserts)
        _check_probe(location, served, served.head.logits(hidden, []), self._expected)


def _check_probe(location: str, served: CausalLM, logits: torch.Tensor, expected: torch.Tensor) -> None:
    difference = float((logits.log_softmax(dim=1) - expected.log_softmax(dim=1)).abs().max())
    if not difference <= (1e-3 if served.dtype == torch.float32 else 0.25):
        raise ModelLoadError(
            f"{location} does something that is not served: log-probabilities would be wrong by {difference:.2g}"
        )


def load_tokenizer(location: str) -> Any:
    """The tokenizer beside a model."""
    try:
        return AutoTokenizer.from_pretrained(location)
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{location} has no tokenizer that loads: {error}") from error


def stop_token_ids(location: str, config: Any, tokenizer: Any) -> tuple[int, ...]:
    """Tokens that end a sample unless the request says otherwise: all that the model's files declare."""
    declared: list[object] = [getattr(config, "eos_token_id", None), tokenizer.eos_token_id]
    with contextlib.suppress(OSError):  # the file is optional
        declared.append(GenerationConfig.from_pretrained(location).eos_token_id)
    return tuple(sorted({token for entry in declared for token in _as_ids(entry)}))


def _as_ids(entry: object) -> Iterable[int]:
    if isinstance(entry, int):
        return (entry,)
    return [token for token in entry if isinstance(token, int)] if isinstance(entry, list) else ()
