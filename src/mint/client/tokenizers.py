"""Tokenizers of a server's local models: fetched once, kept by their hash, loaded without a network after that.

The SDK loads a tokenizer by its model's name from a hub, or from a folder that the server names; neither is there for a
model that only the server has. Files lie in `~/.cache/mint/tokenizers`, or under `$XDG_CACHE_HOME`. Knows the SDK's
holder as far as it sends requests. Must not import the SDK or transformers before a tokenizer is asked for.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

if TYPE_CHECKING:
    from tinker.lib.internal_client_holder import InternalClientHolder
    from transformers import PreTrainedTokenizerBase

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
"""Of a file: it is written under this name, so that it must be no path."""

SECONDS = 120


class TokenizerError(RuntimeError):
    """A server's tokenizer cannot be taken as it came; the message says why."""


def load(holder: InternalClientHolder, model_name: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a served model; None where the server does not hand it out.

    Raises:
        TokenizerError: what the server sent is not what it announced.
    """
    from tinker import APIStatusError  # noqa: PLC0415

    try:
        files: dict[str, str] = _get(holder, "", model_name=model_name).json()["files"]
    except APIStatusError as error:
        if error.status_code in (400, 404):  # of a hub's model, or a server without this route
            return None
        raise
    folder = _cache() / _digest(files)
    for name, digest in files.items():
        _fetch(holder, model_name, folder / _checked(name), digest)
    from transformers import AutoTokenizer  # noqa: PLC0415

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer


def _fetch(holder: InternalClientHolder, model_name: str, path: Path, digest: str) -> None:
    """One file, unless it is there: it is put in place whole, so that one that is there is right."""
    if path.exists():
        return
    content = _get(holder, "/file", model_name=model_name, name=path.name).content
    if hashlib.sha256(content).hexdigest() != digest:
        raise TokenizerError(f"{path.name} of {model_name!r} is not the file that the server announced")
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_bytes(content)
    staged.replace(path)


def _get(holder: InternalClientHolder, route: str, **query: str) -> Any:
    """The response to a request with the holder's key."""
    import httpx  # noqa: PLC0415
    from tinker.lib.client_connection_pool_type import ClientConnectionPoolType  # noqa: PLC0415

    async def once() -> Any:
        with holder.aclient(ClientConnectionPoolType.TRAIN) as http:
            return await http.get(f"/api/v1/tokenizer{route}?{urlencode(query)}", cast_to=httpx.Response)

    async def send() -> Any:
        return await holder.execute_with_retries(once)

    return holder.run_coroutine_threadsafe(send()).result(SECONDS)


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "mint" / "tokenizers"


def _digest(files: dict[str, str]) -> str:
    return hashlib.sha256("\n".join(f"{name} {files[name]}" for name in sorted(files)).encode()).hexdigest()


def _checked(name: str) -> str:
    if not NAME.fullmatch(name):
        raise TokenizerError(f"the server names a file {name!r}")
    return name
