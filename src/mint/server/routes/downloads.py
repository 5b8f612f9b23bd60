"""Downloads: links that are signed and need no key, and what they lead to."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import RedirectResponse

from mint.errors import BadRequestError, NotFoundError
from mint.server import access
from mint.server.archives import send_archive, send_file
from mint.server.dependencies import AnyTime, Owner, Ready
from mint.server.routes.checkpoints import ONE
from mint.server.services import Services
from mint.store import checkpoints, files
from mint.store.schema import Checkpoint
from mint.wire.paths import CheckpointPath

router = APIRouter(tags=["checkpoints"])

AccessToken = Annotated[str | None, Header(alias="X-Tinker-Weights-Access-Token")]


@router.get(f"{ONE}/archive", status_code=302)
async def archive(  # the three parts of a path
    run_id: str, segment: str, name: str, http: Request, services: Ready, owner: Owner, token: AccessToken = None
) -> Response:
    """Lead to a tar archive of a checkpoint's files, at a link that needs no key for an hour."""
    found = await _readable(services, (run_id, segment, name), owner, token)
    link = services.signer.link(http, "download_archive", checkpoint_id=found.checkpoint_id)
    return RedirectResponse(link.url, 302, {"Expires": link.expires.strftime("%a, %d %b %Y %H:%M:%S GMT")})


@router.get(f"{ONE}/external_weights_urls")
async def external_weights_urls(  # the three parts of a path
    run_id: str, segment: str, name: str, http: Request, services: Ready, owner: Owner, token: AccessToken = None
) -> dict[str, Any]:
    """A link for each file of a checkpoint that was saved for download; they need no key for an hour."""
    found = await _readable(services, (run_id, segment, name), owner, token)
    if segment != "external_weights":
        raise BadRequestError("is no checkpoint that was saved by save_weights_external", field="checkpoint_id")
    await services.fetch(found.directory)
    links = {
        file: services.signer.link(http, "download_file", checkpoint_id=found.checkpoint_id, file=file)
        for file in files.read_manifest(services.catalog.checkpoint_dir / found.directory)
    }
    return {
        "urls": {file: link.url for file, link in links.items()},
        "expires": min(link.expires for link in links.values()).isoformat(),
    }


async def _readable(services: Services, place: tuple[str, str, str], owner: str, token: str | None) -> Checkpoint:
    path = str(CheckpointPath.parse(f"tinker://{'/'.join(place)}", "checkpoint_id"))
    return await services.database.transaction(lambda c: access.checkpoint(c, path, owner, "checkpoint_id", token))


@router.get("/checkpoint_archives/{checkpoint_id}")
async def download_archive(
    checkpoint_id: str, http: Request, services: AnyTime, expires: str = "", signature: str = ""
) -> Response:
    """A checkpoint's files as a tar archive, for who has a link."""
    services.signer.check(http, expires, signature)
    return send_archive(services, await _linked(services, checkpoint_id))


@router.get("/checkpoint_files/{checkpoint_id}/{file}")
async def download_file(
    checkpoint_id: str, file: str, http: Request, services: AnyTime, expires: str = "", signature: str = ""
) -> Response:
    """One of a checkpoint's files, for who has a link."""
    services.signer.check(http, expires, signature)
    return send_file(services, await _linked(services, checkpoint_id), file)


async def _linked(services: Services, checkpoint_id: str) -> Checkpoint:
    """The checkpoint of a link, if it is still there; its files are here then.

    Raises:
        NotFoundError: it was deleted or replaced, or has expired.
    """
    found = await services.database.transaction(lambda c: checkpoints.live_by_id(c, checkpoint_id))
    if found is None:
        raise NotFoundError("the checkpoint of this link is gone", field="checkpoint_id")
    await services.fetch(found.directory)
    return found
