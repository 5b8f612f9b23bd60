"""Checkpoints as folders of one's own: downloaded from a server, uploaded to one.

Each call returns the SDK's `APIFuture` at once, for `.result()` or `await`. On a terminal it shows how far it is.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from mint.client.discovery import resolve

if TYPE_CHECKING:
    import httpx
    from tinker import APIFuture

    from mint.client.transfers import Advance, Server

T = TypeVar("T")

TRANSFERS = ThreadPoolExecutor(max_workers=4, thread_name_prefix="transfers")


def download_checkpoint(
    path: str,
    folder: str | Path,
    *,
    weights_access_token: str | None = None,
    base_url: str | None = None,
    api_key: str | None = None,
    progress: bool | None = None,
) -> APIFuture[Path]:
    """Download the files of a checkpoint, and see by their hashes that they are what was saved.

    They are `adapter_config.json` and `adapter_model.safetensors`, which `peft` loads; of a training checkpoint also
    `optimizer.safetensors`; and `manifest.json` with the hashes.

    Args:
        path: `tinker://…` of a checkpoint of any kind: one's own, or published.
        folder: to be made, once all files are there; it may exist if it is empty. The future gives it back.
        weights_access_token: for a checkpoint that is another's.
        base_url: of the server. It and the key are otherwise found as a `ServiceClient` finds them.
        progress: whether to show a bar; None is: on a terminal.

    Raises:
        ValueError: no server or key is known, or `path` is none of a checkpoint.
        FileExistsError: the folder has something in it.
        tinker.APIStatusError: the server refuses, as its subclass for the status says.
        OSError: the disk refuses, the connection broke, or what came is not what was saved. No folder is left.
    """
    from mint.client import transfers  # noqa: PLC0415

    server, target = _server(base_url, api_key), Path(folder).expanduser().absolute()

    def work(advance: Advance) -> Path:
        transfers.download(server, path, target, weights_access_token, advance)
        return target

    return _begin(f"download {target.name}", progress, work)


def upload_checkpoint(  # noqa: PLR0913  # what the server's form has
    source: str | Path,
    *,
    name: str = "uploaded",
    base_model: str | None = None,
    project_id: str | None = None,
    ttl_seconds: int | None = None,
    base_url: str | None = None,
    api_key: str | None = None,
    progress: bool | None = None,
) -> APIFuture[str]:
    """Upload a LoRA in `peft`'s format, or a downloaded training checkpoint, as a new checkpoint.

    An adapter becomes a checkpoint for sampling, and a run can begin with it; a training checkpoint keeps its
    optimizer. What a bad connection interrupts is tried again, and makes one checkpoint.

    Args:
        source: the folder that `save_pretrained` or `download_checkpoint` made, or a tar archive of one, plain or
            compressed with gzip or zstd.
        name: of the checkpoint. It is in a run of its own, so that every name is free.
        base_model: as the server names it; None is what the adapter's configuration names.
        project_id: where it belongs.
        ttl_seconds: how long it is kept, from 3600 on; None is for ever.
        base_url: of the server; see `download_checkpoint`.
        progress: whether to show a bar; None is: on a terminal.

    Returns:
        A future of the checkpoint's path, `tinker://…`.

    Raises:
        ValueError: no server or key is known.
        FileNotFoundError: there is no adapter.
        tinker.APIStatusError: the server refuses, as its subclass for the status says.
        OSError: a file cannot be read, or the connection broke.
    """
    from mint.client import transfers  # noqa: PLC0415

    server, place = _server(base_url, api_key), Path(source).expanduser().absolute()
    fields = {"name": name, "base_model": base_model, "project_id": project_id, "ttl_seconds": ttl_seconds}

    def work(advance: Advance) -> str:
        return str(transfers.upload(server, place, fields, advance)["path"])

    return _begin(f"upload {place.name}", progress, work)


def _begin(label: str, progress: bool | None, work: Callable[[Advance], T]) -> APIFuture[T]:
    from mint.client.progress import progress_bar  # noqa: PLC0415
    from mint.client.submission import awaitable  # noqa: PLC0415

    def run() -> T:
        with progress_bar(label, progress) as advance:
            return work(advance)

    return awaitable(TRANSFERS.submit(run))


def _server(base_url: str | None, api_key: str | None) -> Server:
    from mint.client.transfers import Server  # noqa: PLC0415

    endpoint = resolve(base_url, api_key)
    if endpoint.base_url is None:
        raise ValueError("no server is known: give base_url, set MINT_BASE_URL, or start one with `mint serve`")
    if endpoint.api_key is None:
        raise ValueError(f"no key for {endpoint.base_url} is known: give api_key, or set MINT_API_KEY")
    return Server(endpoint.base_url, endpoint.api_key, _refuse)


def _refuse(answer: httpx.Response) -> NoReturn:
    """As the SDK's own calls do it."""
    import tinker  # noqa: PLC0415

    kinds = {
        400: tinker.BadRequestError,
        401: tinker.AuthenticationError,
        403: tinker.PermissionDeniedError,
        404: tinker.NotFoundError,
        422: tinker.UnprocessableEntityError,
        429: tinker.RateLimitError,
    }
    status = answer.status_code
    kind = kinds.get(status, tinker.InternalServerError if status >= 500 else tinker.APIStatusError)
    try:
        body = answer.json()
    except ValueError:
        body = answer.text
    raise kind(f"Error code: {status} - {body}", response=answer, body=body)
