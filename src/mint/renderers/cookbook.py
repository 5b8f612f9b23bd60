"""The cookbook, where it is installed, with MinT's renderers registered in it.

The one module that decides what happens where the cookbook is missing. Must not be imported by `mint.renderers`
before a name is used: the cookbook loads torch.
"""

from __future__ import annotations

from functools import cache, partial
from importlib import import_module
from types import ModuleType
from typing import Any

HF_TEMPLATE = "hf_template"
HF_TEMPLATE_DISABLE_THINKING = "hf_template_disable_thinking"
ROLE_COLON = "role_colon"
"""The cookbook's renderer for models without a chat template."""

THINKING_OFF = {"enable_thinking": False, "thinking": False}
"""The variables by which chat templates turn thinking off: Qwen's and GLM's, DeepSeek's."""

TINY = "mint/tiny"
"""The built-in model, whose tokenizer is in this package and on no hub."""

MISSING = (
    "mint.renderers uses tinker-cookbook's renderers, and tinker-cookbook is not installed:"
    " pip install 'mint[cookbook]' (mint.renderers.ChatTemplate works without it)"
)


@cache
def load() -> ModuleType:
    """`tinker_cookbook.renderers`, knowing the names of MinT's renderers.

    Raises:
        ImportError: the cookbook is not installed; the message says how to get it.
    """
    try:
        renderers = import_module("tinker_cookbook.renderers")
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] == "tinker_cookbook":
            raise ImportError(MISSING, name=error.name) from None
        raise
    from mint.renderers.hf_template import HFTemplateRenderer  # noqa: PLC0415  # it subclasses the cookbook's

    import_module("tinker_cookbook.tokenizer_utils").register_tokenizer(TINY, _tiny_tokenizer)
    renderers.register_renderer(HF_TEMPLATE, HFTemplateRenderer)
    renderers.register_renderer(HF_TEMPLATE_DISABLE_THINKING, partial(HFTemplateRenderer, variables=THINKING_OFF))
    return renderers


@cache
def _tiny_tokenizer() -> Any:
    from transformers import AutoTokenizer  # noqa: PLC0415  # it takes seconds to load

    from mint.tiny import model_path  # noqa: PLC0415

    return AutoTokenizer.from_pretrained(model_path())
