"""Messages to tokens and back: tinker-cookbook's renderers under MinT's name, and what MinT adds to them.

`mint.renderers.X is tinker_cookbook.renderers.X` for every public name there. Added are the renderer `hf_template`,
registered with the cookbook's, and the names in `_OWN`. Importing this package loads neither the cookbook
nor torch, which the cookbook needs: that happens when one of its names is used. `ChatTemplate` does without both.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_OWN = {
    "ChatTemplate": "chat_template",
    "ChatTemplateError": "chat_template",
    "Conversation": "conversation",
    "HFTemplateRenderer": "hf_template",
    "recommended_renderer": "recommended",
    "recommended_renderers": "recommended",
}
"""Names of MinT's own, and their modules here."""

if TYPE_CHECKING:
    from tinker_cookbook.renderers import *  # noqa: F403  # what `__getattr__` finds at run time

    from mint.renderers.chat_template import ChatTemplate, ChatTemplateError
    from mint.renderers.conversation import Conversation
    from mint.renderers.hf_template import HFTemplateRenderer
    from mint.renderers.recommended import recommended_renderer, recommended_renderers

    __all__ = [
        "ChatTemplate",
        "ChatTemplateError",
        "Conversation",
        "HFTemplateRenderer",
        "recommended_renderer",
        "recommended_renderers",
    ]
else:

    def __getattr__(name: str) -> Any:
        # tools that walk over modules ask for `__wrapped__` and the like, and must not load torch by that
        if name.startswith("_") and name != "__all__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
        if name in _OWN:
            return getattr(import_module(f"{__name__}.{_OWN[name]}"), name)
        cookbook = import_module(f"{__name__}.cookbook").load()
        if name == "__all__":
            return sorted({*cookbook.__all__, *_OWN})
        try:
            return getattr(cookbook, name)
        except AttributeError:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name) from None

    def __dir__() -> list[str]:
        return __getattr__("__all__")
