"""Whether a template only ever adds to a conversation: then prompts of later turns begin with those of earlier ones."""

from __future__ import annotations

from mint.renderers.chat_template import TOOL, ChatTemplate, ChatTemplateError, Message, called
from mint.renderers.examples import build_example


def extends(template: ChatTemplate) -> bool:
    """Whether each prompt begins with the last one and its answer, on conversations with all that may be dropped."""
    return all(_extends(template, conversation) for conversation in _conversations(template))


def _conversations(template: ChatTemplate) -> list[list[Message]]:
    """Conversations whose messages at odd places are the assistant's."""
    answers: list[Message] = [{"role": "assistant", "content": "A."}]
    if template.reasoning_field:
        answers.append({"role": "assistant", "content": "A.", template.reasoning_field: "R."})
    elif template.thinking_markers:
        before, behind = template.thinking_markers
        answers.append({"role": "assistant", "content": f"{before}\nR.\n{behind}\n\nA."})
    question: Message = {"role": "user", "content": "Q?"}
    conversations = [[question, first, question, second, question] for first in answers for second in answers]
    if template.takes_tools:
        arguments: object = '{"word": "tin"}' if template.arguments_are_text else {"word": "tin"}
        result = {"role": "tool", "name": "look_up", "tool_call_id": "call00001", "content": "a metal"}
        conversations.append([question, called(arguments), result, *answers[-1:], question])
    return conversations


def _extends(template: ChatTemplate, conversation: list[Message]) -> bool:
    tools = [TOOL] if template.takes_tools else []
    for place in range(1, len(conversation), 2):
        try:
            answered = build_example(template, conversation[: place + 1], tools, ()).tokens
            prompt = template.prompt(conversation[:place], tools)
            later = template.prompt(conversation[: place + 2], tools)
        except ChatTemplateError:  # a conversation that the template does not take breaks no promise
            continue
        if answered[: len(prompt)] != prompt or later[: len(answered)] != answered:
            return False
    return True
