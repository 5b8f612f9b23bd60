"""Checkpoint paths, and the names in them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from tinker.types import ParsedCheckpointTinkerPath

from mint.errors import BadRequestError
from mint.wire.paths import CheckpointPath
from mint.wire.requests import CheckpointName

NAME = TypeAdapter(CheckpointName)


@pytest.mark.parametrize("segment", ["weights", "sampler_weights"])
def test_a_path_reads_as_the_sdk_reads_it(segment: str) -> None:
    text = f"tinker://session-1:train:0/{segment}/step-10"
    path = CheckpointPath.parse(text, "path")
    theirs = ParsedCheckpointTinkerPath.from_tinker_path(text)
    assert str(path) == text
    assert path.run_id == theirs.training_run_id
    assert f"{path.segment}/{path.name}" == theirs.checkpoint_id


def test_the_other_scheme_means_the_same() -> None:
    assert str(CheckpointPath.parse("mint://r:train:0/weights/a", "path")) == "tinker://r:train:0/weights/a"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tinker://",
        "r/weights/a",
        "https://r/weights/a",
        "tinker://r/weights",
        "tinker://r/weights/",
        "tinker:///weights/a",
        "tinker://r/weights/a/b",
        "tinker://r/other/a",
        "tinker://mint://r/weights/a",
    ],
)
def test_no_paths(text: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        CheckpointPath.parse(text, "model_path")
    assert caught.value.field == "model_path"


@given(st.text())
def test_any_text_is_a_path_or_refused(text: str) -> None:
    try:
        path = CheckpointPath.parse("tinker://" + text, "path")
    except BadRequestError:
        return
    assert str(path) == "tinker://" + text


@pytest.mark.parametrize("name", ["a", "step-10", "000010", "final.v2", "lr=1e-4+b", "x" * 128])
def test_names(name: str) -> None:
    assert NAME.validate_python(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "-a", "a/b", "a b", "a\n", "a\0", "ä", "x" * 129])
def test_names_that_could_leave_their_folder_are_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        NAME.validate_python(name)
