"""Which renderer a model is used with."""

from __future__ import annotations

from typing import Any

from mint.renderers.chat_template import ChatTemplate
from mint.renderers.cookbook import HF_TEMPLATE, HF_TEMPLATE_DISABLE_THINKING, ROLE_COLON, THINKING_OFF, load


def recommended_renderers(model_name: str, tokenizer: Any = None) -> list[str]:
    """Names of the renderers made for a model, the best first.

    The cookbook's where it knows the model, then those of the tokenizer's chat template; without either, `role_colon`.

    Args:
        model_name: as it is served, such as `Qwen/Qwen3-8B`.
        tokenizer: the model's, of transformers; without one, only the cookbook's table is asked.

    Raises:
        ImportError: tinker-cookbook is not installed.
        LookupError: the cookbook does not know the model, and there is no tokenizer to judge by.
    """
    known = _cookbooks(model_name)
    if tokenizer is None and not known:
        raise LookupError(f"tinker-cookbook does not know {model_name!r}: pass its tokenizer")
    template = _templates(tokenizer) if tokenizer is not None else []
    return [*known, *template] or [ROLE_COLON]


def recommended_renderer(model_name: str, tokenizer: Any = None) -> str:
    """The first of `recommended_renderers`."""
    return recommended_renderers(model_name, tokenizer)[0]


def _cookbooks(model_name: str) -> list[str]:
    load()
    from tinker_cookbook.exceptions import ConfigurationError  # noqa: PLC0415  # only where it is installed
    from tinker_cookbook.model_info import get_recommended_renderer_names  # noqa: PLC0415

    try:
        return list(get_recommended_renderer_names(model_name))
    except (ConfigurationError, KeyError, ValueError):
        return []


def _templates(tokenizer: Any) -> list[str]:
    if not getattr(tokenizer, "chat_template", None) or not tokenizer.is_fast:
        return []
    told_off = ChatTemplate(tokenizer, THINKING_OFF).opening != ChatTemplate(tokenizer).opening
    return [HF_TEMPLATE, *([HF_TEMPLATE_DISABLE_THINKING] if told_off else [])]
