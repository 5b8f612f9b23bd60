"""A LoRA in PEFT's format, made by anyone: read, checked against its base model, and written as ours are.

What the engine loads has both factors of every layer of the kinds that it trains, in float32. Layers that the upload
leaves alone get zeros for both, and stay as they are: a factor's gradient is zero while the other factor is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mint.engine.core import LoraShape, LoraSite, ModelInfo
from mint.engine.formats import CONFIG_FILE, WEIGHTS_FILE, factor_name, peft_config
from mint.errors import BadRequestError
from mint.server.uploads.tensors import FLOATS, Array, TensorFile, write_tensors
from mint.store import files

UNSERVED = (
    "use_dora",
    "use_qalora",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "layer_replication",
    "fan_in_fan_out",
    "lora_bias",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "use_bdlora",
)
"""Settings of PEFT under which an adapter computes something else than LoRA with one scale on linear layers."""

PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Initialisations of A and B after which the base model's weights are still its own."""

MAX_NUMBER = 1 << 31
"""Of rank and scale, before anything is computed with them."""


@dataclass(frozen=True)
class AdapterConfig:
    """What `adapter_config.json` says that matters here."""

    rank: int
    alpha: float
    base_model: str | None


def read_config(folder: Path) -> AdapterConfig:
    """The configuration of an uploaded adapter.

    Raises:
        BadRequestError: it is none of a LoRA, or of one that is not served; the message names the setting.
    """
    config = _object(folder)
    if config.get("peft_type") != "LORA":
        raise _refusal("peft_type", f"is {config.get('peft_type')!r}; LORA is served")
    for name in UNSERVED:
        if config.get(name):
            raise _refusal(name, "is set, which is not served")
    if config.get("bias", "none") != "none":
        raise _refusal("bias", f"is {config['bias']!r}, which is not served; none is")
    if (start := config.get("init_lora_weights", True)) not in PLAIN_STARTS:
        raise _refusal(
            "init_lora_weights", f"is {start!r}, which changes the base model; convert the adapter to a LoRA"
        )
    rank: Any = config.get("r")
    alpha: Any = config.get("lora_alpha")
    base_model = config.get("base_model_name_or_path")
    if type(rank) is not int or not 1 <= rank < MAX_NUMBER:
        raise _refusal("r", f"is {rank!r}, which is no rank")
    if type(alpha) not in (int, float) or not 0 < alpha < MAX_NUMBER:
        raise _refusal("lora_alpha", f"is {alpha!r}, which is no scale")
    # scaled by alpha / √r instead of alpha / r
    alpha = float(alpha) * (math.sqrt(rank) if config.get("use_rslora") else 1.0)
    return AdapterConfig(rank, alpha, base_model if isinstance(base_model, str) else None)


def _object(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG_FILE).read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"is no JSON: {error}", field=CONFIG_FILE) from None
    if not isinstance(config, dict):
        raise BadRequestError("is no JSON object", field=CONFIG_FILE)
    return config


def _refusal(setting: str, message: str) -> BadRequestError:
    return BadRequestError(message, field=f"{CONFIG_FILE}.{setting}")


def write_adapter(
    uploaded: Path, staged: Path, config: AdapterConfig, model: ModelInfo
) -> tuple[LoraShape, list[LoraSite]]:
    """Check an uploaded adapter's weights and write them, and their configuration, to a staged folder.

    Returns:
        The shape, which trains the kinds of layers of which the upload has any, and all layers of these kinds.

    Raises:
        BadRequestError: the rank is over the limit, or the weights are not a LoRA's on this base model.
        OSError: the disk refuses.
    """
    if config.rank > model.max_lora_rank:
        raise _refusal("r", f"is {config.rank}; {model.max_lora_rank} is the largest rank here")
    file = TensorFile(uploaded / WEIGHTS_FILE)
    kinds = _check_tensors(file, config.rank, model)
    flags = {f"train_{kind}": kind in kinds for kind in ("attn", "mlp", "unembed")}
    shape = LoraShape(rank=config.rank, seed=None, alpha=config.alpha, **flags)
    sites = [site for site in model.lora_sites if site.kind in kinds]
    shapes = {name: size for site in sites for name, size in _factors(site, config.rank).items()}
    write_tensors(staged / WEIGHTS_FILE, shapes, _values(file, shapes))
    text = json.dumps(peft_config(shape, (site.name for site in sites), model.name), indent=2, sort_keys=True)
    (staged / CONFIG_FILE).write_text(text + "\n")
    files.sync(staged / CONFIG_FILE)
    return shape, sites


def num_parameters(sites: Iterable[LoraSite], rank: int) -> int:
    """Of the factors of these layers."""
    return sum(rank * (site.in_features + site.out_features) for site in sites)


def _factors(site: LoraSite, rank: int) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a layer's factors."""
    return {
        factor_name(site.name, "A"): (rank, site.in_features),
        factor_name(site.name, "B"): (site.out_features, rank),
    }


def _check_tensors(file: TensorFile, rank: int, model: ModelInfo) -> set[str]:
    """See that there are whole pairs of factors of this model's layers, and nothing else; returns the layers' kinds."""
    left, kinds = dict(file.tensors), set[str]()
    for site in model.lora_sites:
        factors = _factors(site, rank)
        present = [name for name in factors if name in left]
        if len(present) == 1:
            raise _misfit(f"{present[0]} is there without its other factor")
        for name in present:
            stored = left.pop(name)
            if stored.shape != factors[name] or stored.dtype not in FLOATS:
                raise _misfit(f"{name} is {stored.dtype} {list(stored.shape)}, not a float {list(factors[name])}")
            kinds.add(site.kind)
    if left:
        raise _misfit(f"{min(left)} is nothing that a LoRA on {model.name} has")
    if not kinds:
        raise _misfit("it has no tensors")
    return kinds


def _misfit(message: str) -> BadRequestError:
    return BadRequestError(message, field=WEIGHTS_FILE)


def _values(file: TensorFile, shapes: dict[str, tuple[int, ...]]) -> Iterator[Array]:
    for name, shape in shapes.items():
        yield file.read(name) if name in file.tensors else np.zeros(shape, "<f4")
