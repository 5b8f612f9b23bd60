"""Weights to take home: as an archive in older versions, as an external checkpoint in newer ones."""

from __future__ import annotations

import io
import json
import tarfile
import urllib.request

import tinker

from .common import SECONDS, Absent, finish, run_of, service

ADAPTER = {"adapter_config.json", "adapter_model.safetensors"}


def main() -> None:
    client = service()
    run = run_of(client)
    rest = client.create_rest_client()
    ways = [hasattr(rest, "get_checkpoint_archive_url_from_tinker_path"), hasattr(run, "save_weights_external")]
    try:
        if ways[0]:
            _archive(run, rest)
        if ways[1]:
            _external(run, rest)
    except tinker.NotFoundError as error:
        if error.body == {"detail": "Not Found"}:
            raise Absent("this server has no route for it") from None
        raise
    finally:
        finish(client)


def _archive(run: tinker.TrainingClient, rest: tinker.RestClient) -> None:
    path = run.save_weights_for_sampler("home").result(SECONDS).path
    url = rest.get_checkpoint_archive_url_from_tinker_path(path).result(SECONDS).url
    with tarfile.open(fileobj=io.BytesIO(_fetch(url))) as archive:
        files = {member.name.rpartition("/")[2]: member for member in archive.getmembers() if member.isfile()}
        assert set(files) >= ADAPTER, files
        assert json.load(archive.extractfile(files["adapter_config.json"]))["r"] == 4


def _external(run: tinker.TrainingClient, rest: tinker.RestClient) -> None:
    path = run.save_weights_external("outside").result(SECONDS).path
    urls = rest.get_external_weights_urls(path).result(SECONDS).urls
    files = {name.rpartition("/")[2]: url for name, url in urls.items()}
    assert set(files) >= ADAPTER, files
    assert json.loads(_fetch(files["adapter_config.json"]))["r"] == 4
    assert len(_fetch(files["adapter_model.safetensors"])) > 1000


def _fetch(url: str) -> bytes:
    """With no header of the SDK's: links carry what they need."""
    with urllib.request.urlopen(url, timeout=SECONDS) as answer:
        return answer.read()
