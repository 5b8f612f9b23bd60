"""What each version of the SDK is told to do differently."""

from __future__ import annotations

import pytest

from mint.server.client_settings import settings_for

from .inprocess import Serve, play

SAMPLES_AND_ZSTD = {"proto_compress_fwdbwd": True, "sample_use_retrieve_futures": True}
FROM_CHECKPOINTS = {"proto_write_fwdbwd": True, "create_model_via_load_weights": True}
LATEST = {"custom_loss_server_side": True, "sample_join_sampling_session": True}


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        (("0.6.0", "0.16.0", "0.21.9", "", "x", None), {}),
        (("0.22.0", "0.29.1"), {"proto_write_fwdbwd": True, "use_pyqwest_transport": False}),
        (("0.30.0", "0.37.9"), SAMPLES_AND_ZSTD | FROM_CHECKPOINTS),
        (("0.38.0", "0.38.1rc1", "0.40", "1.0.0"), SAMPLES_AND_ZSTD | FROM_CHECKPOINTS | LATEST),
    ],
)
def test_settings(versions: tuple[str | None, ...], expected: dict[str, bool]) -> None:
    for version in versions:
        assert settings_for(version, jwt_auth=False, mint_key=False) == expected
        assert settings_for(version, jwt_auth=True, mint_key=False) == {"pjwt_auth_enabled": True} | expected


@pytest.mark.parametrize(("version", "tokens"), [("0.22.0", True), ("0.30.4", False), ("0.38.0", False), (None, False)])
def test_published_clients_of_mint_exchange_their_keys(version: str | None, tokens: bool) -> None:
    assert settings_for(version, jwt_auth=False, mint_key=True).get("pjwt_auth_enabled", False) == tokens


def test_they_are_what_a_client_is_answered(serve: Serve) -> None:
    async def scene() -> None:
        async with serve(jwt_auth=True) as world:
            for version in ("0.38.0", "0.22.0", None):
                told = await world.alice.ok("client/config", {"sdk_version": version, "new": 1})
                assert told == settings_for(version, jwt_auth=True, mint_key=True)

    play(scene)
