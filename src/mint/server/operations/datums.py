"""Datums of the wire as the engine takes them: tokens, images in their places, loss inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mint.engine.core import Datum, Int32Array, ModelInfo, PlacedImage
from mint.errors import BadRequestError
from mint.openpi import CAMERA_LAYOUT
from mint.server.images import ImageReader, place_chunks
from mint.wire.chunks import ImageChunk, ModelInput
from mint.wire.passes import PassDatum


def read_data(data: Iterable[PassDatum], model: ModelInfo, reader: ImageReader | None) -> Iterator[Datum]:
    """Decode datum after datum.

    Raises:
        BadRequestError: one has what the model does not take; names the datum.
    """
    for index, datum in enumerate(data):
        try:
            tokens, images = read_input(datum.model_input, model, reader)
        except BadRequestError as error:
            error.datum = index
            raise
        yield Datum(tokens, datum.loss_inputs, images)


def read_input(
    model_input: ModelInput, model: ModelInfo, reader: ImageReader | None
) -> tuple[Int32Array, tuple[PlacedImage, ...]]:
    """See `place_chunks`; a robot policy takes one image of each camera, then one chunk of text."""
    if model.policy is not None:
        kinds = ["image" if isinstance(chunk, ImageChunk) else "text" for chunk in model_input.chunks]
        if kinds != ["image"] * len(CAMERA_LAYOUT) + ["text"]:
            raise BadRequestError(
                f"are {', '.join(kinds[:8]) or 'none'}; {model.name} takes exactly {len(CAMERA_LAYOUT)} images, "
                f"{', '.join(CAMERA_LAYOUT)}, and then one chunk of encoded_text",
                field=f"{model_input.where}.chunks",
            )
    return place_chunks(model_input, model, reader)
