"""Checkpoint paths: `tinker://<training_run_id>/<segment>/<name>`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from mint.errors import BadRequestError

Segment = Literal["weights", "sampler_weights", "external_weights"]
LEGACY_SCHEME = "mint://"
SCHEMES = ("tinker://", LEGACY_SCHEME)


@dataclass(frozen=True)
class CheckpointPath:
    """A parsed path; `str()` gives the canonical form."""

    run_id: str
    segment: Segment
    name: str

    def __str__(self) -> str:
        return f"tinker://{self.run_id}/{self.segment}/{self.name}"

    @classmethod
    def parse(cls, text: str, field: str) -> CheckpointPath:
        """Read a path; `mint://` is accepted for `tinker://`.

        Raises:
            BadRequestError: naming `field`, if it is no such path.
        """
        scheme = next((scheme for scheme in SCHEMES if text.startswith(scheme)), None)
        parts = text.removeprefix(scheme or "").split("/")
        segments: tuple[Segment, ...] = get_args(Segment)
        segment = next((segment for segment in segments if parts[1:2] == [segment]), None)
        if scheme is None or len(parts) != 3 or segment is None or not all(parts):
            form = f"tinker://<run>/<{'|'.join(segments)}>/<name>"
            raise BadRequestError(f"{text!r} is no checkpoint path; it should read {form}", field=field)
        return cls(parts[0], segment, parts[2])
