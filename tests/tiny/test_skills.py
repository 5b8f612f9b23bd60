"""Skills ask what they should, answer rightly, and keep training and evaluation apart."""

import re
from itertools import islice
from random import Random

import pytest

from mint.tiny.recipe import words
from mint.tiny.recipe.corpus import conversation, documents
from mint.tiny.recipe.skills import BASE_SKILLS, LORA_SKILLS, Skill, skill

ALL = (*BASE_SKILLS, *LORA_SKILLS)
DRAWS = 300


def drawn(name: str, split: str = "train") -> list[tuple[str, str]]:
    rng = Random(7)
    return [skill(name).draw(rng, split) for _ in range(DRAWS)]


def numbers(text: str) -> list[int]:
    return [int(match) for match in re.findall(r"\d+", text)]


def after_colon(question: str) -> list[str]:
    return question.split(": ", 1)[1].split(", ")


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_same_seed_draws_the_same(one: Skill):
    first = [one.draw(Random(3), "train") for _ in range(5)]
    assert first == [one.draw(Random(3), "train") for _ in range(5)]


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_splits_share_no_question_and_questions_have_one_answer(one: Skill):
    train, evaluation = dict(drawn(one.name)), dict(drawn(one.name, "eval"))
    assert not train.keys() & evaluation.keys()
    for pairs, split in ((train, "train"), (evaluation, "eval")):
        assert all(pairs[question] == answer for question, answer in drawn(one.name, split))


def test_another_wording_of_a_sum_is_not_new():
    train = {frozenset(numbers(question)) for question, _ in drawn("add")}
    assert not train & {frozenset(numbers(question)) for question, _ in drawn("add", "eval")}


def test_copying():
    assert all(question.endswith(answer) for question, answer in drawn("copy"))


def test_arithmetic():
    for question, answer in drawn("add"):
        assert int(answer) == sum(numbers(question))
    for question, answer in drawn("subtract"):
        low, high = sorted(numbers(question))
        assert int(answer) == high - low
    for question, answer in drawn("multiply"):
        a, b = numbers(question)
        assert int(answer) == a * b
    for question, answer in drawn("add_three"):
        a, b, c = numbers(question)
        assert int(answer) == a + b + c


def test_sorting():
    for question, answer in drawn("sort_numbers"):
        assert numbers(answer) == sorted(numbers(question))
    for question, answer in drawn("sort_words"):
        assert answer.split(", ") == sorted(after_colon(question))
    for question, answer in drawn("sort_descending"):
        assert numbers(answer)[::-1] == sorted(numbers(question))


def test_lists():
    for question, answer in drawn("count"):
        assert int(answer) == question.count(",") + 1
    for question, answer in drawn("first_or_last"):
        items = re.split(r": | item of ", question)[1].split(", ")
        assert answer == items[0 if "first" in question else -1]
    for question, answer in drawn("reverse"):
        assert answer.split(", ")[::-1] == after_colon(question)
    for question, answer in drawn("largest_or_smallest"):
        ordered = sorted(numbers(question))
        assert int(answer) == ordered[-1 if "largest" in question else 0]


def test_yes_and_no():
    for question, answer in drawn("compare"):
        a, b = numbers(question)
        more = re.search("greater|more|bigger", question)
        assert (answer == "yes") == (a > b if more else a < b)
    for question, answer in drawn("member"):
        match = re.fullmatch(r"Is (\w+) in (?:the list: )?(.*)\?|Does (.*) contain (\w+)\?", question)
        assert match is not None
        item, items = match[1] or match[4], match[2] or match[3]
        assert (answer == "yes") == (item in items.split(", "))


def test_letters():
    for question, answer in drawn("spell"):
        assert answer.replace("-", "") in question.rstrip(".").split(" ")
    for question, answer in drawn("upper_case"):
        assert answer.isupper()
        assert answer.lower() in re.split(r"\W+", question)
    for question, answer in drawn("letter"):
        match = re.search(r"(first|second|third|fourth|fifth|last) (?:letter of|in) (\w+)\?", question)
        assert match is not None
        ordinals = ["first", "second", "third", "fourth", "fifth"]
        assert answer == match[2][-1 if match[1] == "last" else ordinals.index(match[1])]


def test_number_words():
    for question, answer in drawn("number_words"):
        a, b = numbers(question)
        assert words.NUMBER_WORDS.index(answer) == (a + b if "+" in question else a - b)


def test_facts_and_reading():
    facts = {question: answer for _ in range(10) for question, answer in drawn("fact") + drawn("fact", "eval")}
    known = {"hot": "cold", "cow say": "moo", "spider have": "8", "after Sunday": "Monday"}
    for mark, answer in known.items():
        assert {facts[question] for question in facts if f"{mark}?" in question} <= {answer}
    for question, answer in drawn("comprehension"):
        assert answer.removeprefix("an ").removeprefix("a ") in question


def test_withheld_skills_are_never_taught():
    rng = Random(5)
    withheld = re.compile("revers|descending|largest|smallest|[Ss]pell|capital letters|upper case|in words|as a word")
    for _ in range(3000):
        assert not withheld.search("".join(span.text for span in conversation(rng)))


def test_documents_are_deterministic():
    assert list(islice(documents(Random(1)), 50)) == list(islice(documents(Random(1)), 50))
