"""Calls of tools: read out of a text in the model's own format, or forced by a constraint."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mint.engine.core import Constraint
from mint.errors import BadRequestError
from mint.server.openai.messages import Tool, ToolChoice
from mint.server.openai.text import overlap


@dataclass(frozen=True)
class Call:
    """A call that the model wants made; `arguments` is JSON text."""

    name: str
    arguments: str


class ToolFormat(Protocol):
    """How a text says that it calls tools. Calls of tools that were not offered, or that are no JSON, stay text."""

    def split(self, text: str) -> tuple[str, list[Call]]:
        """A whole text without its calls, and the calls."""
        ...

    def settled(self, text: str) -> int:
        """How many characters of an unfinished text are in no call, whatever comes."""
        ...


class NoTools:
    """Where none are offered."""

    def split(self, text: str) -> tuple[str, list[Call]]:
        """See `ToolFormat`."""
        return text, []

    def settled(self, text: str) -> int:
        """See `ToolFormat`."""
        return len(text)


@dataclass(frozen=True)
class HermesFormat:
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>`, as Hermes and Qwen write it."""

    names: frozenset[str]
    OPENING = "<tool_call>"
    CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)

    def split(self, text: str) -> tuple[str, list[Call]]:
        """See `ToolFormat`."""
        found = [(match, _call(_json(match[1]), self.names)) for match in self.CALL.finditer(text)]
        calls = [call for _, call in found if call is not None]
        for match, call in reversed(found):
            if call is not None:
                text = text[: match.start()].rstrip() + text[match.end() :].rstrip()
        return text, calls

    def settled(self, text: str) -> int:
        """See `ToolFormat`. Spaces before a call go with it."""
        place = text.find(self.OPENING)
        if place < 0:
            place = len(text) - overlap(text, self.OPENING)
        return len(text[:place].rstrip())


@dataclass(frozen=True)
class LlamaFormat:
    """Nothing but `{"name": …, "parameters": {…}}`, or several with `;` between, as Llama 3 writes it."""

    names: frozenset[str]

    def split(self, text: str) -> tuple[str, list[Call]]:
        """See `ToolFormat`."""
        calls: list[Call] = []
        rest = text.strip()
        while rest:
            try:
                value, end = json.JSONDecoder().raw_decode(rest)
            except ValueError:
                return text, []
            call = _call(value, self.names)
            if call is None:
                return text, []
            calls.append(call)
            rest = rest[end:].lstrip("; \n")
        return ("", calls) if calls else (text, [])

    def settled(self, text: str) -> int:
        """See `ToolFormat`."""
        return 0 if text.lstrip()[:1] in ("", "{") else len(text)


@dataclass(frozen=True)
class OneCall:
    """The whole text is the arguments of one tool, by constraint."""

    name: str

    def split(self, text: str) -> tuple[str, list[Call]]:
        """See `ToolFormat`. An answer that was cut off by its length is not JSON yet, and stays text."""
        return ("", [Call(self.name, text)]) if isinstance(_json(text), dict) else (text, [])

    def settled(self, text: str) -> int:
        """See `ToolFormat`."""
        del text
        return 0


@dataclass(frozen=True)
class SomeCalls:
    """The whole text is a list of calls, by constraint."""

    names: frozenset[str]

    def split(self, text: str) -> tuple[str, list[Call]]:
        """See `ToolFormat`."""
        values = _json(text)
        calls = [_call(value, self.names) for value in values] if isinstance(values, list) else []
        good = [call for call in calls if call is not None]
        return ("", good) if good and len(good) == len(calls) else (text, [])

    def settled(self, text: str) -> int:
        """See `ToolFormat`."""
        del text
        return 0


def offered_format(tools: Sequence[Tool], template: str) -> ToolFormat:
    """The format that a chat template teaches its model.

    Raises:
        BadRequestError: it teaches none that can be read here.
    """
    names = frozenset(tool.function.name for tool in tools)
    if "tools" in template and HermesFormat.OPENING in template:
        return HermesFormat(names)
    if "tools" in template and '"parameters"' in template and "<|start_header_id|>" in template:
        return LlamaFormat(names)
    raise BadRequestError(
        "the model's chat template has no tools in a format that can be read here, which are Hermes's and Llama 3's",
        field="tools",
    )


def forced_format(tools: Sequence[Tool], choice: ToolChoice, *, parallel: bool) -> tuple[ToolFormat, Constraint]:
    """How a call that the request demands is written, and what makes the model write it.

    Raises:
        BadRequestError: the tool that is demanded is not on offer.
    """
    functions = {tool.function.name: tool.function for tool in tools}
    if choice.mode == "function":
        if choice.name not in functions:
            raise BadRequestError(f"{choice.name!r} is not among the tools", field="tool_choice")
        function = functions[choice.name]
        place = [tool.function for tool in tools].index(function)
        text = json.dumps(function.schema_of_arguments)
        return OneCall(choice.name), Constraint("json_schema", text, f"tools.{place}.function.parameters")
    if not functions:
        raise BadRequestError("demands a call, and there are no tools", field="tool_choice")
    calls = [_schema_of_call(name, function.schema_of_arguments) for name, function in functions.items()]
    listed = {"type": "array", "minItems": 1, "items": {"anyOf": calls}, **({} if parallel else {"maxItems": 1})}
    return SomeCalls(frozenset(functions)), Constraint("json_schema", json.dumps(listed), "tools")


def _schema_of_call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _json(text: str) -> Any:
    """The value, or None for what is no JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def _call(value: Any, names: frozenset[str]) -> Call | None:
    """A call, if `value` is one of a tool on offer."""
    if not isinstance(value, dict) or value.get("name") not in names:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if not isinstance(arguments, dict):
        return None
    return Call(value["name"], json.dumps(arguments, ensure_ascii=False))
