"""Messages and tools of a chat: as they come, and as chat templates read them."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

MAX_NESTING = 100
"""Levels of objects and lists in a JSON schema."""


def _text(content: Any) -> Any:
    """Content as one text; templates of text models know no parts."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError("only parts of type text are served")
        texts.append(part["text"])
    return "".join(texts)


def shallow(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema that is not nested so deeply that something which reads it could stumble."""
    level: list[Any] = [schema]
    for _ in range(MAX_NESTING):
        values = (inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer))
        level = [inner for inner in values if isinstance(inner, dict | list)]
        if not level:
            return schema
    raise ValueError(f"a JSON schema may be {MAX_NESTING} levels deep")


def _without_null(body: Any) -> Any:
    return {name: value for name, value in body.items() if value is not None} if isinstance(body, dict) else body


class Function(BaseModel):
    """What a tool is: a function with JSON arguments. `strict` asks that calls keep to `parameters`."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: Annotated[dict[str, Any], AfterValidator(shallow)] | None = None
    strict: bool | None = None

    @property
    def schema_of_arguments(self) -> dict[str, Any]:
        """`parameters`, or what they are when there are none."""
        return self.parameters or {"type": "object", "properties": {}}


class Tool(BaseModel):
    """A function that the model may call."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["function"]
    function: Function

    def for_template(self) -> dict[str, Any]:
        """In the order and with the fields that models were trained on."""
        function = self.function.model_dump(exclude_none=True, exclude={"strict"})
        return {"type": "function", "function": {**function, "parameters": self.function.schema_of_arguments}}


class ToolChoice(BaseModel):
    """Whether the model may, must or must not call a tool; with `name`, that one."""

    model_config = ConfigDict(extra="forbid")

    mode: Literal["none", "auto", "required", "function"] = "auto"
    name: str | None = None


def _tool_choice(value: Any) -> Any:
    """OpenAI's two ways to write it, as the fields of `ToolChoice`."""
    if isinstance(value, str):
        return {"mode": value}
    if isinstance(value, dict) and value.get("type") == "function" and isinstance(value.get("function"), dict):
        return {"mode": "function", "name": value["function"].get("name", "")}
    raise ValueError('must be "none", "auto", "required" or {"type": "function", "function": {"name": …}}')


GivenToolChoice = Annotated[
    ToolChoice, BeforeValidator(_tool_choice, json_schema_input_type=str | dict[str, str | dict[str, str]])
]


class CalledFunction(BaseModel):
    """A call in an earlier turn; `arguments` is JSON text."""

    name: str
    arguments: str = "{}"


class ToolCall(BaseModel):
    """A call in an earlier turn."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction

    def for_template(self) -> dict[str, Any]:
        """With the arguments as an object, which is what templates print."""
        try:
            arguments = json.loads(self.function.arguments)
        except ValueError:
            arguments = self.function.arguments
        return {"id": self.id, "type": self.type, "function": {"name": self.function.name, "arguments": arguments}}


class Message(BaseModel):
    """One turn. `refusal` and `annotations` come back with messages of OpenAI's own models and are left out."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str | None, BeforeValidator(_text)] = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None

    _null_is_absent = model_validator(mode="before")(_without_null)

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.content is None and not self.tool_calls:
            raise ValueError("has no content")
        return self

    def for_template(self) -> dict[str, Any]:
        """As templates read it; `developer` is OpenAI's newer name for `system`."""
        message = self.model_dump(exclude_none=True, exclude={"refusal", "annotations", "tool_calls"})
        if self.role == "developer":
            message["role"] = "system"
        if self.tool_calls:
            message["tool_calls"] = [call.for_template() for call in self.tool_calls]
        return message
