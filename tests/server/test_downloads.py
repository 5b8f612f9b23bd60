"""Downloads of checkpoints: links without a key, archives, single files, and who may have them."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from email.utils import parsedate_to_datetime
from time import time
from typing import Any

import httpx
import pyrage
import pytest

from mint.server import signing
from mint.server.archives import send_archive
from mint.server.sweeper import sweep
from mint.store import checkpoints

from .inprocess import Api, Serve, play
from .test_checkpoints import folders, listed, passing, saved, status, url

RECIPIENTS = "age_encryption_recipients"


async def exported(api: Api, run: str, seq_id: int, name: str = "out", **fields: Any) -> str:
    answer = await api.result("save_weights_external", {"model_id": run, "seq_id": seq_id, "path": name, **fields})
    assert answer["path"] == f"tinker://{run}/external_weights/{name}", answer
    return str(answer["path"])


async def redirect(api: Api, path: str, **headers: str) -> httpx.Response:
    return await api.send("GET", url(path, "/archive"), headers=headers)


async def urls(api: Api, path: str) -> dict[str, str]:
    answer = await api.send("GET", url(path, "/external_weights_urls"))
    assert answer.status_code == 200, answer.text
    links: dict[str, str] = answer.json()["urls"]
    return links


def unpacked(content: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        members = tar.getmembers()
        assert all(member.isreg() for member in members)
        return {member.name: tar.extractfile(member).read() for member in members}  # type: ignore[union-attr]


def test_an_archive_has_the_files_and_their_hashes(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            training = await saved(world.alice, run, 1)
            sampler = await world.alice.result("save_weights_for_sampler", {"model_id": run, "seq_id": 2, "path": "s"})
            for path in (training, sampler["path"]):
                answer = await redirect(world.alice, path)
                assert answer.status_code == 302
                assert time() + 3590 < parsedate_to_datetime(answer.headers["expires"]).timestamp() < time() + 3610
                got = await world.bob.http.get(answer.headers["location"])
                assert len(got.content) == int(got.headers["content-length"])
                content = unpacked(got.content)
                assert content.keys() == {"weights", "manifest.json"}
                entry = json.loads(content["manifest.json"])["files"]["weights"]
                digest = hashlib.sha256(content["weights"]).hexdigest()
                assert entry == {"size": len(content["weights"]), "sha256": digest}

    play(scene)


def test_a_link_is_for_one_checkpoint_and_an_hour(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            first, second = [await saved(world.alice, run, number, f"c{number}") for number in (1, 2)]
            link, other = [(await redirect(world.alice, path)).headers["location"] for path in (first, second)]

            async def code(link: str) -> int:
                return (await world.bob.http.get(link)).status_code

            assert await code(link) == await code(other) == 200
            assert await code(link.partition("?")[0] + "?" + other.partition("?")[2]) == 401
            assert await code(link.partition("?")[0]) == 401
            assert await code(link.replace("expires=", "expires=9")) == 401
            with monkeypatch.context() as patch:
                patch.setattr(signing, "time", lambda: time() + signing.LINK_SECONDS + 1)
                assert await code(link) == 401
            assert await status(world.alice, "DELETE", second) == 204
            assert await code(other) == 404
            await saved(world.alice, run, 3, "c1", overwrite=True)
            assert await code(link) == 404, "another checkpoint has the name"

    play(scene)


def test_links_keep_the_path_that_a_proxy_takes_off(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            path = await exported(world.alice, await world.alice.run(), 1)
            for prefix, base in (
                ("/train", "http://server/train/"),
                ("/a/b/", "http://server/a/b/"),
                ("//evil.example", "http://server/api"),
                ("/x?y=", "http://server/api"),
            ):
                headers = {"X-Forwarded-Prefix": prefix}
                location = (await redirect(world.alice, path, **headers)).headers["location"]
                assert location.startswith(base), prefix
                answer = await world.alice.send("GET", url(path, "/external_weights_urls"), headers=headers)
                assert all(link.startswith(base) for link in answer.json()["urls"].values())
                behind = location.replace(base, "http://server/") if base.endswith("/") else location
                assert (await world.bob.http.get(behind)).status_code == 200
            host = await redirect(world.alice, path, Host="train.example:8443")
            assert host.headers["location"].startswith("http://train.example:8443/api/v1/")

    play(scene)


def test_who_may_download(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            path, out = await saved(world.alice, run, 1), await exported(world.alice, run, 2)
            for refused in (path, out):
                assert (await redirect(world.bob, refused)).status_code == 403
            assert await status(world.bob, "GET", out, "/external_weights_urls") == 403
            assert await status(world.alice, "GET", f"{path}-not", "/archive") == 404
            assert await status(world.alice, "GET", path, "/external_weights_urls") == 400
            for shared in (path, out):
                assert await status(world.alice, "POST", shared, "/publish") == 204
                assert (await redirect(world.bob, shared)).status_code == 302
            assert await urls(world.bob, out)

    play(scene)


def test_external_weights_are_for_download_only(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            session = await world.alice.session()
            run = await world.alice.run(session)
            path = await exported(world.alice, run, 1, ttl_seconds=3600, user_metadata={"step": "1"})
            (row,) = await listed(world.alice)
            assert (row["checkpoint_id"], row["checkpoint_type"]) == ("external_weights/out", "external")
            assert (row["user_metadata"], row["expires_at"] is None) == ({"step": "1"}, False)
            (link,) = (await urls(world.alice, path)).items()
            assert link[0] == "weights"
            assert (await world.bob.http.get(link[1])).content == b"1"
            assert (await world.bob.http.get(link[1].replace("/weights?", "/manifest.json?"))).status_code == 401
            for route, body in {
                "load_weights": {"model_id": run, "seq_id": 2, "path": path},
                "create_sampling_session": {"session_id": session, "sampling_session_seq_id": 0, "model_path": path},
                "save_weights_external": {"model_id": run, "seq_id": 3, "path": "out"},
            }.items():
                answer = await world.alice.post(route, body)
                assert answer.status_code == 400, route
                assert answer.json()["field"] in ("path", "model_path"), route
            assert await status(world.alice, "PUT", path, "/ttl", json={"ttl_seconds": None}) == 204
            assert await status(world.alice, "DELETE", path) == 204
            assert (await world.bob.http.get(link[1])).status_code == 404

    play(scene)


def test_older_sdks_are_not_told_of_a_type_they_do_not_know(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            await exported(world.alice, run, 1)
            for version, count in (("0.22.0", 0), ("0.6.0", 0), ("0.30.4", 1), ("0.38.0", 1), ("1.2.0", 1)):
                headers = {"X-Stainless-Package-Version": version}
                for place in ("checkpoints", f"training_runs/{run}/checkpoints"):
                    answer = (await world.alice.send("GET", place, headers=headers)).json()
                    assert len(answer["checkpoints"]) == count, (version, place)
                    assert answer.get("cursor", {"total_count": count})["total_count"] == count

    play(scene)


def test_encrypted_weights_open_for_their_recipients_only(serve: Serve) -> None:
    mine, theirs = pyrage.x25519.Identity.generate(), pyrage.x25519.Identity.generate()

    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            path = await exported(world.alice, run, 1, **{RECIPIENTS: [str(mine.to_public())]})
            ((name, link),) = (await urls(world.alice, path)).items()
            sealed = (await world.alice.http.get(link)).content
            assert name == "weights.age"
            assert pyrage.decrypt(sealed, [mine]) == b"1"
            with pytest.raises(pyrage.DecryptError):
                pyrage.decrypt(sealed, [theirs])
            (row,) = await listed(world.alice)
            assert row["size_bytes"] == len(sealed)
            (folder,) = (world.services.catalog.checkpoint_dir / name for name in folders(world))
            assert {file.name for file in folder.iterdir()} == {"weights.age", "manifest.json"}
            good = str(mine.to_public())
            for recipients, field in (
                ([good, "age1nonsense"], f"{RECIPIENTS}[1]"),
                (["ssh-ed25519 AAAA"], f"{RECIPIENTS}[0]"),
                (["AGE-SECRET-KEY-1"], f"{RECIPIENTS}[0]"),
                ([good] * 11, RECIPIENTS),
            ):
                body = {"model_id": run, "seq_id": 2, "path": "b", RECIPIENTS: recipients}
                answer = await world.alice.post("save_weights_external", body)
                assert answer.status_code in (400, 422)
                assert answer.json()["field"] == field

    play(scene)


def test_a_folder_stays_while_it_is_downloaded(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            path = await saved(world.alice, await world.alice.run(), 1)
            (held,) = folders(world)
            found = await world.services.database.transaction(lambda c: checkpoints.live(c, path))
            assert found is not None
            pieces = send_archive(world.services, found).body_iterator
            content = await anext(pieces)
            assert await status(world.alice, "DELETE", path) == 204
            await sweep(world.services)
            assert folders(world) == {held}
            content += b"".join([piece async for piece in pieces])
            assert unpacked(content)["weights"] == b"1"
            await sweep(world.services)
            assert folders(world) == set()
            assert not world.services.downloads

    play(scene)


def test_an_expired_checkpoint_has_no_links(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        async with serve() as world:
            path = await saved(world.alice, await world.alice.run(), 1, ttl_seconds=3600)
            link = (await redirect(world.alice, path)).headers["location"]
            passing(monkeypatch, 3601)
            assert (await redirect(world.alice, path)).status_code == 404
            assert (await world.bob.http.get(link)).status_code == 404

    play(scene)
