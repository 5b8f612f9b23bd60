"""Archives to upload: good ones, and parts of which bad ones are put together."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save

from mint.engine.formats import LAYOUT_VERSION, MOMENTS, factor_name
from tests.dispatch.fakes import INFO

RANK = 2
CONFIG_NAME, WEIGHTS_NAME, OPTIMIZER_NAME = "adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors"


def config(**settings: Any) -> bytes:
    content = {"peft_type": "LORA", "r": RANK, "lora_alpha": 16, "base_model_name_or_path": "base", "bias": "none"}
    return json.dumps(content | settings).encode()


def factors(*kinds: str, rank: int = RANK, dtype: str = "<f4", seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Of all layers of these kinds; of all kinds, without any."""
    draw = np.random.default_rng(seed)
    tensors = {}
    for site in INFO.lora_sites:
        if not kinds or site.kind in kinds:
            shapes = {"A": (rank, site.in_features), "B": (site.out_features, rank)}
            tensors |= {factor_name(site.name, f): draw.normal(size=size).astype(dtype) for f, size in shapes.items()}
    return tensors


def weights(tensors: Mapping[str, np.ndarray[Any, Any]] | None = None) -> bytes:
    return save(dict(factors() if tensors is None else tensors))


NUM_PARAMETERS = sum(factor.size for factor in factors().values())


def optimizer(steps: int = 3, size: int = NUM_PARAMETERS, **tensors: np.ndarray[Any, Any]) -> bytes:
    content = {name: np.full(size, 0.5, "<f4") for name in MOMENTS} if steps else {}
    content |= {"step": np.array(steps, "<i8"), "layout": np.array(LAYOUT_VERSION, "<i8"), **tensors}
    return save(content)


def adapter(**files: bytes) -> dict[str, bytes]:
    return {CONFIG_NAME: config(), WEIGHTS_NAME: weights(), **files}


def tar(files: Mapping[str, bytes], mode: str = "w") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()
