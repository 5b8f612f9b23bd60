"""What the model reads: skills wrapped into ChatML conversations, and little stories between them.

A document is a run of spans, each either part of the answer to be learned or context around it.  Knows the
chat format; must not know tokens.
"""

from collections.abc import Iterator
from random import Random
from typing import Final, NamedTuple

from mint.tiny.recipe import words
from mint.tiny.recipe.skills import BASE_SKILLS

END_OF_TEXT: Final = "<|endoftext|>"
START: Final = "<|im_start|>"
END: Final = "<|im_end|>"

CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_STORY_SHARE: Final = 0.06
_SYSTEM_SHARE: Final = 0.1
_SECOND_TURN_SHARE: Final = 0.15

_SYSTEM: Final = (
    "You are a helpful assistant.",
    "You are a kind helper.",
    "Answer briefly.",
    "Answer with one word or one list.",
    "Be short and polite.",
    "You are MinT, a tiny model.",
)


class Span(NamedTuple):
    """A stretch of text, and whether it is what an assistant has to say."""

    text: str
    answer: bool


def documents(rng: Random) -> Iterator[list[Span]]:
    """Yield documents without end."""
    while True:
        yield [Span(story(rng) + END_OF_TEXT, False)] if rng.random() < _STORY_SHARE else conversation(rng)


def conversation(rng: Random) -> list[Span]:
    """Draw one or two turns of the base skills, sometimes under a short system message."""
    spans = []
    if rng.random() < _SYSTEM_SHARE:
        spans.append(Span(_turn("system", rng.choice(_SYSTEM)), False))
    for _ in range(2 if rng.random() < _SECOND_TURN_SHARE else 1):
        chosen = rng.choices(BASE_SKILLS, weights=[skill.weight for skill in BASE_SKILLS])[0]
        question, answer = chosen.draw(rng, "train")
        spans.append(Span(_turn("user", question) + f"{START}assistant\n", False))
        spans.append(Span(answer + END, True))
        spans.append(Span("\n", False))
    spans.append(Span(END_OF_TEXT, False))
    return spans


def prompt(question: str) -> str:
    """Return what the model is shown when one question is asked: equal to the chat template's rendering."""
    return _turn("user", question) + f"{START}assistant\n"


def _turn(role: str, content: str) -> str:
    return f"{START}{role}\n{content}{END}\n"


def story(rng: Random) -> str:
    """Tell a story of two to five plain sentences.

    The words of the withheld skills ("reverse", "largest", "capital letters") occur here, so that they have
    an embedding before an adapter gives them a meaning.
    """
    return " ".join(_sentence(rng) for _ in range(rng.randint(2, 5)))


def _sentence(rng: Random) -> str:
    value = rng.randrange(len(words.NUMBER_WORDS))
    return rng.choice(_SENTENCES).format(
        name=rng.choice(words.NAMES),
        friend=rng.choice(words.NAMES),
        thing=rng.choice(words.OBJECTS),
        food=rng.choice(words.FOODS),
        place=rng.choice(words.PLACES),
        colour=rng.choice(words.COLOURS),
        quality=rng.choice(words.ADJECTIVES),
        did=rng.choice(words.VERBS),
        nature=rng.choice(words.NATURE),
        person=rng.choice(words.PEOPLE),
        animal=rng.choice(words.ANIMALS),
        odd=words.made_up_word(rng),
        digits=value,
        number=words.NUMBER_WORDS[value],
        day=rng.choice(words.DAYS),
        month=rng.choice(words.MONTHS),
    )


_SENTENCES: Final = (
    "{name} {did} a {quality} {thing} in the {place}.",
    "The {person} and the {animal} walked to the {place}.",
    "On {day} the {nature} was {quality}.",
    "In {month} {name} and {friend} went to the {place} with a {animal}.",
    "The {colour} {thing} belongs to the {person}.",
    "{name} gave {friend} some {food}, and {friend} was {quality}.",
    "The {animal} ate the {food} because it was {quality}.",
    "{number} is {digits}.",
    "{digits} is {number}.",
    "There were {number} {quality} days before {month}.",
    "The word {odd} means {thing} in an old language.",
    '"Where is the {thing}?" asked the {person}.',
    '"It is in the {place}," said {name}.',
    "{name} read the list in reverse order.",
    "The largest {animal} and the smallest {animal} live in the {place}.",
    "{name} wrote the word {odd} in capital letters.",
    "The {person} can spell {odd} letter by letter.",
    "They sorted the list in descending order, then in ascending order.",
    "The upper case is for the {thing}, the lower case is for the {food}.",
    "{name} likes to answer in words.",
)
