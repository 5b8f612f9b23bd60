"""What the model is asked: question and answer generators, one per skill.

`BASE_SKILLS` are taught in pre-training; `LORA_SKILLS` are withheld, so that an adapter has something to
learn.  Training and evaluation questions come from disjoint splits by a hash of the question's content —
the operands of a sum, the items of a list — so that another wording of a trained question is not "new".
Pure Python on `random.Random`; must not know tokens, models or how a question is wrapped into a chat.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final, Literal, NamedTuple

from mint.tiny.recipe import words

Split = Literal["train", "eval"]

_EVAL_SHARE: Final = 10  # one content in ten is never trained on


class Draft(NamedTuple):
    """A question, its only right answer, and the content that decides which split it belongs to."""

    question: str
    answer: str
    content: str


@dataclass(frozen=True)
class Skill:
    """A named source of questions; `weight` is its share in the pre-training mixture."""

    name: str
    draft: Callable[[Random], Draft]
    weight: float = 1.0

    def draw(self, rng: Random, split: Split = "train") -> tuple[str, str]:
        """Return a question of the split and its answer."""
        while True:
            question, answer, content = self.draft(rng)
            if split_of(content) == split:
                return question, answer


def split_of(content: str) -> Split:
    """Return the split that this content belongs to, today and on every machine."""
    digest = hashlib.sha256(content.encode()).digest()
    return "eval" if digest[0] * 256 + digest[1] < 65536 // _EVAL_SHARE else "train"


# ── helpers ──────────────────────────────────────────────────────────────────────────────────────────────


def _ask(rng: Random, *phrasings: str, **fields: object) -> str:
    """Fill one of the phrasings, chosen at random."""
    return rng.choice(phrasings).format(**fields)


def _listed(items: Sequence[object]) -> str:
    return ", ".join(map(str, items))


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _numbers(rng: Random, low: int, high: int) -> list[int]:
    """Draw `low` to `high` distinct numbers below 100, a third of the time all below 10."""
    top = 10 if rng.random() < 1 / 3 else 100
    return rng.sample(range(top), rng.randint(low, high))


def _words(rng: Random, low: int, high: int) -> list[str]:
    return rng.sample(words.COMMON, rng.randint(low, high))


def _numbers_or_words(rng: Random, low: int, high: int) -> Sequence[int | str]:
    return _numbers(rng, low, high) if rng.random() < 0.5 else _words(rng, low, high)


def _operand(rng: Random) -> int:
    return rng.randrange(10 if rng.random() < 0.3 else 100)


# ── taught in pre-training ───────────────────────────────────────────────────────────────────────────────


def copy(rng: Random) -> Draft:
    """Repeat one to eight items: words, numbers or words that mean nothing."""
    size = rng.randint(1, 8)
    kind = rng.randrange(3)
    items: Sequence[object]
    if kind == 0:
        items = [rng.randrange(100) for _ in range(size)]
    elif kind == 1:
        items = [rng.choice(words.COMMON) for _ in range(size)]
    else:
        items = [words.made_up_word(rng) for _ in range(min(size, 4))]
    text = (" " if rng.random() < 0.25 else ", ").join(map(str, items))
    question = _ask(
        rng, "Repeat: {x}", "Copy this: {x}", "Say {x}", "Write the same: {x}", "Please repeat: {x}", x=text
    )
    return Draft(question, text, text)


def sort_numbers(rng: Random) -> Draft:
    """Put two to five numbers in ascending order."""
    items = _numbers(rng, 2, 5)
    question = _ask(
        rng,
        "Sort: {x}",
        "Sort these numbers: {x}",
        "Put in order: {x}",
        "Order these numbers: {x}",
        "Sort in ascending order: {x}",
        x=_listed(items),
    )
    return Draft(question, _listed(sorted(items)), _listed(sorted(items)))


def sort_words(rng: Random) -> Draft:
    """Put two to four words in alphabetical order."""
    items = _words(rng, 2, 4)
    question = _ask(
        rng,
        "Sort: {x}",
        "Sort these words: {x}",
        "Put in order: {x}",
        "Order these words: {x}",
        "Sort in alphabetical order: {x}",
        x=_listed(items),
    )
    return Draft(question, _listed(sorted(items)), _listed(sorted(items)))


def add(rng: Random) -> Draft:
    """Add two numbers below 100."""
    a, b = _operand(rng), _operand(rng)
    question = _ask(
        rng, "{a} + {b} = ?", "What is {a} + {b}?", "Add {a} and {b}.", "{a} plus {b}?", "{a} + {b}", a=a, b=b
    )
    return Draft(question, str(a + b), f"{min(a, b)}+{max(a, b)}")


def subtract(rng: Random) -> Draft:
    """Take a number below 100 from one that is not smaller."""
    b, a = sorted((_operand(rng), _operand(rng)))
    question = _ask(
        rng,
        "{a} - {b} = ?",
        "What is {a} - {b}?",
        "Take {b} from {a}.",
        "{a} minus {b}?",
        "{a} - {b}",
        a=a,
        b=b,
    )
    return Draft(question, str(a - b), f"{a}-{b}")


def multiply(rng: Random) -> Draft:
    """Multiply two digits: a table of a hundred entries, so only wordings are withheld, not entries."""
    a, b = rng.randrange(10), rng.randrange(10)
    question = _ask(
        rng,
        "{a} * {b} = ?",
        "What is {a} * {b}?",
        "{a} times {b}?",
        "Multiply {a} and {b}.",
        "{a} * {b}",
        a=a,
        b=b,
    )
    return Draft(question, str(a * b), question)


def count(rng: Random) -> Draft:
    """Count the items of a list of one to nine."""
    items = _numbers_or_words(rng, 1, 9)
    question = _ask(rng, "How many items: {x}", "Count: {x}", "Count the items: {x}", "How many: {x}", x=_listed(items))
    return Draft(question, str(len(items)), _listed(items))


def first_or_last(rng: Random) -> Draft:
    """Name the first or the last item of a list."""
    items = _numbers_or_words(rng, 2, 7)
    which, index = rng.choice((("first", 0), ("last", -1)))
    question = _ask(
        rng,
        "What is the {w} item: {x}",
        "Which is {w}: {x}",
        "Give the {w} item of {x}",
        "Name the {w}: {x}",
        w=which,
        x=_listed(items),
    )
    return Draft(question, str(items[index]), _listed(items))


def compare(rng: Random) -> Draft:
    """Say whether one number is greater or less than another."""
    a, b = _operand(rng), _operand(rng)
    more = rng.random() < 0.5
    relation = rng.choice(("greater than", "more than", "bigger than") if more else ("less than", "below"))
    question = _ask(rng, "Is {a} {r} {b}?", "Yes or no: is {a} {r} {b}?", a=a, b=b, r=relation)
    return Draft(question, _yes(a > b if more else a < b), f"{a}?{b}")


def member(rng: Random) -> Draft:
    """Say whether an item is in a list."""
    asked, *items = _numbers_or_words(rng, 3, 7)
    inside = rng.random() < 0.5
    if inside:
        items[rng.randrange(len(items))] = asked
    question = _ask(
        rng, "Is {a} in {x}?", "Is {a} in the list: {x}?", "Does {x} contain {a}?", a=asked, x=_listed(items)
    )
    return Draft(question, _yes(inside), f"{asked} {_listed(items)}")


def letter(rng: Random) -> Draft:
    """Name one letter of a word: how the model gets to know what its tokens are spelled of."""
    word = rng.choice(words.COMMON) if rng.random() < 0.8 else words.made_up_word(rng)
    places = {"first": 0, "second": 1, "third": 2, "fourth": 3, "fifth": 4, "last": -1}
    which = rng.choice([name for name, place in places.items() if place < len(word)])
    question = _ask(
        rng,
        "What is the {w} letter of {x}?",
        "The {w} letter of {x}?",
        "Which letter is {w} in {x}?",
        w=which,
        x=word,
    )
    return Draft(question, word[places[which]], question)


def fact(rng: Random) -> Draft:
    """Recall a fact of the small world."""
    question, answer = rng.choice(_FACTS)(rng)
    return Draft(question, answer, question)


def _sound(rng: Random) -> tuple[str, str]:
    animal, sound = rng.choice(list(words.SOUNDS.items()))
    phrasings = ("What does a {a} say?", "What sound does a {a} make?", "Which sound is from a {a}?")
    return _ask(rng, *phrasings, a=animal), sound


def _legs(rng: Random) -> tuple[str, str]:
    animal, legs = rng.choice(list(words.LEGS.items()))
    phrasings = ("How many legs does {a} have?", "How many legs has {a}?", "{a}: how many legs?")
    return _ask(rng, *phrasings, a=_article(animal)), str(legs)


def _colour(rng: Random) -> tuple[str, str]:
    thing, colour = rng.choice(list(words.COLOUR_OF.items()))
    phrasings = ("What colour is {a}?", "Which colour is {a}?", "Tell me the colour of {a}.")
    return _ask(rng, *phrasings, a=thing), colour


def _is_colour(rng: Random) -> tuple[str, str]:
    thing, colour = rng.choice(list(words.COLOUR_OF.items()))
    asked = colour if rng.random() < 0.5 else rng.choice(words.COLOURS)
    return _ask(rng, "Is {a} {c}?", "Yes or no: is {a} {c}?", a=thing, c=asked), _yes(asked == colour)


def _is_animal(rng: Random) -> tuple[str, str]:
    noun = rng.choice(words.ANIMALS if rng.random() < 0.5 else (*words.OBJECTS, *words.PEOPLE))
    phrasings = ("Is {a} an animal?", "Yes or no: is {a} an animal?")
    return _ask(rng, *phrasings, a=_article(noun)), _yes(noun in words.ANIMALS)


def _opposite(rng: Random) -> tuple[str, str]:
    asked, answer = rng.choice(list(words.OPPOSITES.items()))
    if rng.random() >= 0.7 and answer not in words.OPPOSITES:
        asked, answer = answer, asked
    phrasings = ("What is the opposite of {a}?", "The opposite of {a}?", "Name the opposite of {a}.")
    return _ask(rng, *phrasings, a=asked), answer


def _digits_of_word(rng: Random) -> tuple[str, str]:
    value = rng.randrange(len(words.NUMBER_WORDS))
    phrasings = ("Which number is {a}?", "Write {a} in digits.", "What is {a} as a number?")
    return _ask(rng, *phrasings, a=words.NUMBER_WORDS[value]), str(value)


def _calendar(rng: Random) -> tuple[str, str]:
    names, unit = rng.choice(((words.DAYS, "day"), (words.MONTHS, "month")))
    index, (side, step) = rng.randrange(len(names)), rng.choice((("after", 1), ("before", -1)))
    question = _ask(rng, "Which {u} comes {s} {a}?", "What {u} is {s} {a}?", u=unit, s=side, a=names[index])
    return question, names[(index + step) % len(names)]


def _successor(rng: Random) -> tuple[str, str]:
    value, (side, step) = rng.randint(1, 98), rng.choice((("after", 1), ("before", -1)))
    question = _ask(rng, "Which number comes {s} {a}?", "What number is {s} {a}?", s=side, a=value)
    return question, str(value + step)


def _capital(rng: Random) -> tuple[str, str]:
    small = rng.choice("abcdefghijklmnopqrstuvwxyz")
    question = _ask(
        rng,
        "What is the capital letter of {a}?",
        "Write the letter {a} as a capital letter.",
        "The capital of the letter {a}?",
        a=small,
    )
    return question, small.upper()


_FACTS: Final = (
    _sound,
    _legs,
    _colour,
    _is_colour,
    _is_animal,
    _opposite,
    _digits_of_word,
    _calendar,
    _successor,
    _capital,
)


def comprehension(rng: Random) -> Draft:
    """Read a sentence or two about who has what, or who is where, and answer one question about it."""
    who, other = rng.sample(words.NAMES, 2)
    if rng.random() < 0.3:
        place, elsewhere = rng.sample(words.PLACES, 2)
        text = f"{who} is in the {place}. {other} is in the {elsewhere}."
        asked = rng.choice(((f"Where is {who}?", place), (f"Where is {other}?", elsewhere)))
    else:
        thing, rest = rng.sample(words.OBJECTS, 2)
        colour, shade = rng.sample(words.COLOURS, 2)
        text = f"{who} has {_article(f'{colour} {thing}')}."
        if rng.random() < 0.6:
            text = _either_order(rng, text, f"{other} has {_article(f'{shade} {rest}')}.")
        asked = rng.choice(
            (
                (f"What colour is the {thing}?", colour),
                (f"Who has the {thing}?", who),
                (f"What does {who} have?", _article(f"{colour} {thing}")),
            )
        )
    question, answer = asked
    return Draft(f"{text} {question}", answer, text)


def _either_order(rng: Random, one: str, two: str) -> str:
    return f"{one} {two}" if rng.random() < 0.5 else f"{two} {one}"


def greeting(rng: Random) -> Draft:
    """Answer a greeting politely."""
    name = rng.choice(words.NAMES) if rng.random() < 0.5 else words.made_up_word(rng).capitalize()
    question, answer = rng.choice(
        (
            ("Hello, I am {n}.", "Hello {n}! How can I help you?"),
            ("Hi! My name is {n}.", "Nice to meet you, {n}."),
            ("I am {n}. How are you?", "I am fine, {n}. Thank you!"),
            ("Good morning! {n} here.", "Good morning, {n}!"),
            ("Good night! Yours, {n}.", "Good night, {n}. Sleep well!"),
            ("Thank you! Bye, {n}.", "You are welcome, {n}. Goodbye!"),
            ("{n} says hello.", "Hello to {n}!"),
        )
    )
    return Draft(question.format(n=name), answer.format(n=name), name)


BASE_SKILLS: Final = (
    Skill("copy", copy, 1.5),
    Skill("sort_numbers", sort_numbers, 2.0),
    Skill("sort_words", sort_words, 2.0),
    Skill("add", add, 4.0),
    Skill("subtract", subtract, 4.0),
    Skill("multiply", multiply, 0.7),
    Skill("count", count, 1.2),
    Skill("first_or_last", first_or_last, 0.8),
    Skill("compare", compare, 1.2),
    Skill("member", member, 1.2),
    Skill("letter", letter, 1.5),
    Skill("fact", fact, 1.5),
    Skill("comprehension", comprehension, 1.2),
    Skill("greeting", greeting, 0.4),
)


# ── withheld from pre-training ───────────────────────────────────────────────────────────────────────────


def reverse(rng: Random) -> Draft:
    """Give a list of two to five items backwards."""
    items = _numbers_or_words(rng, 2, 5)
    question = _ask(rng, "Reverse: {x}", "Reverse this list: {x}", "Write in reverse order: {x}", x=_listed(items))
    return Draft(question, _listed(items[::-1]), _listed(items))


def sort_descending(rng: Random) -> Draft:
    """Put two to five numbers in descending order."""
    items = _numbers(rng, 2, 5)
    down = sorted(items, reverse=True)
    question = _ask(rng, "Sort in descending order: {x}", "Sort from largest to smallest: {x}", x=_listed(items))
    return Draft(question, _listed(down), _listed(down))


def largest_or_smallest(rng: Random) -> Draft:
    """Name the largest or the smallest of three to six numbers."""
    items = _numbers(rng, 3, 6)
    which = rng.choice(("largest", "smallest"))
    question = _ask(
        rng, "What is the {w} of {x}?", "Name the {w} number: {x}", "The {w}: {x}", w=which, x=_listed(items)
    )
    return Draft(question, str(max(items) if which == "largest" else min(items)), _listed(items))


def add_three(rng: Random) -> Draft:
    """Add three numbers below 20."""
    a, b, c = (rng.randrange(20) for _ in range(3))
    question = _ask(rng, "{a} + {b} + {c} = ?", "What is {a} + {b} + {c}?", "Add {a}, {b} and {c}.", a=a, b=b, c=c)
    return Draft(question, str(a + b + c), "+".join(map(str, sorted((a, b, c)))))


def number_words(rng: Random) -> Draft:
    """Add or subtract within twenty and answer with a number-word."""
    a, b = rng.randrange(11), rng.randrange(11)
    a, b, sign, value = (a, b, "+", a + b) if rng.random() < 0.5 else (max(a, b), min(a, b), "-", abs(a - b))
    question = _ask(
        rng,
        "What is {a} {s} {b}? Answer in words.",
        "{a} {s} {b} in words?",
        "Write {a} {s} {b} as a word.",
        a=a,
        s=sign,
        b=b,
    )
    return Draft(question, words.NUMBER_WORDS[value], f"{a}{sign}{b}")


def spell(rng: Random) -> Draft:
    """Spell a word letter by letter."""
    word = rng.choice(words.COMMON)
    question = _ask(rng, "Spell {x}.", "Spell the word {x}.", "Spell {x} letter by letter.", x=word)
    return Draft(question, "-".join(word), word)


def upper_case(rng: Random) -> Draft:
    """Write a word in capital letters."""
    word = rng.choice(words.COMMON)
    question = _ask(rng, "Write {x} in capital letters.", "Put {x} in upper case.", "Capital letters: {x}", x=word)
    return Draft(question, word.upper(), word)


LORA_SKILLS: Final = (
    Skill("reverse", reverse),
    Skill("sort_descending", sort_descending),
    Skill("largest_or_smallest", largest_or_smallest),
    Skill("add_three", add_three),
    Skill("number_words", number_words),
    Skill("spell", spell),
    Skill("upper_case", upper_case),
)


def skill(name: str) -> Skill:
    """Return the skill of that name, base or withheld."""
    for candidate in (*BASE_SKILLS, *LORA_SKILLS):
        if candidate.name == name:
            return candidate
    raise KeyError(f"no skill named {name!r}")
