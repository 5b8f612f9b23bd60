"""Rollout correction as a loop over tokens, in Python's own arithmetic."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def k(number: str, log_ratio: float) -> float:
    return {"1": -log_ratio, "2": log_ratio**2 / 2, "3": math.exp(log_ratio) - 1 - log_ratio}[number]


def passes(name: str, threshold: str, log_ratios: list[float], own: float) -> bool:
    number = name[-1]
    values = [k(number, log_ratio) for log_ratio in log_ratios]
    kind = name.removesuffix(f"_k{number}")
    aggregates = {"token": k(number, own), "seq_sum": math.fsum(values), "seq_mean": math.fsum(values) / len(values)}
    value = {**aggregates, "seq_max": max(values)}[kind]
    bounds = [float(part) for part in threshold.split("_")]
    if number != "1":
        return value <= bounds[0]
    low, high = bounds if len(bounds) == 2 else (1 / bounds[0], bounds[0])
    return math.log(low) <= value <= math.log(high)


def weight_of(config: dict[str, Any], log_ratios: list[float], own: float) -> float:
    if config.get("rollout_is") is None:
        return 1.0
    ratio = math.exp(own if config["rollout_is"] == "token" else max(-20, min(20, math.fsum(log_ratios))))
    bounds = [float(part) for part in str(config["rollout_is_threshold"]).split("_")]
    if len(bounds) == 1:
        return min(ratio, bounds[0])
    return ratio if bounds[0] <= ratio <= bounds[1] else 0.0


def expected_terms(
    config: dict[str, Any], p: Tensor, inputs: dict[str, Tensor], of_token: list[int], scale: float
) -> tuple[list[Tensor], list[float], list[float]]:
    """Terms, weights before normalisation and what is kept, token by token."""
    terms, weights, keeps = [], [], []
    zip_rejections = list(
        zip(
            (config.get("rollout_rs") or "").split(","),
            str(config.get("rollout_rs_threshold") or "").split(","),
            strict=True,
        )
    )
    log_ratios = [max(-20.0, min(20.0, p[t].item() - inputs["logprobs"][t].item())) for t in range(len(p))]
    for t in range(len(p)):
        mine = [log_ratios[o] for o in range(len(p)) if of_token[o] == of_token[t] and inputs["mask"][o] != 0]
        weight, kept, factor = 1.0, 1.0, 1.0
        if inputs["mask"][t] != 0:
            weight = weight_of(config, mine, log_ratios[t])
            factor = weight * scale
            kept = float(all(passes(n, h, mine, log_ratios[t]) for n, h in zip_rejections if n))
        a = inputs["advantages"][t].item()
        if config["loss_type"] == "reinforce":
            term = -factor * p[t] * a
        else:
            ratio = torch.exp(p[t] - inputs["logprobs"][t])
            low, high = (inputs[f"clip_{side}_threshold"][t].item() for side in ("low", "high"))
            clipped = min(max(ratio.item(), low), high) * a
            term = -ratio * a if ratio.item() * a <= clipped else torch.tensor(-clipped, dtype=torch.float64)
        terms.append(term * kept)
        weights.append(weight)
        keeps.append(kept)
    return terms, weights, keeps
