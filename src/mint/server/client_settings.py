"""Which settings of the SDK are switched on, for which of its versions, and why.

The SDK asks for them when it starts, and says which version it is. One that does not know a setting ignores it, so each
is named from the first version on that the compatibility table proves it with. What is not named is as the SDK has it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

Version = tuple[int, int]

NEVER: Version = (1 << 30, 0)


@dataclass(frozen=True)
class Setting:
    """A setting of the SDK that is other than its own, from version `since` on and before version `until`."""

    name: str
    on: bool
    since: Version
    until: Version = NEVER


SETTINGS = (
    # Passes in protobuf: a number of a tensor takes four bytes and is not parsed. Later versions know no other way.
    Setting("proto_write_fwdbwd", True, (0, 22)),
    # This transport follows the redirect to an archive by itself and fails; later versions leave it out for that.
    Setting("use_pyqwest_transport", False, (0, 22), (0, 30)),
    # A run from a checkpoint in one operation instead of three. Later versions know no other way.
    Setting("create_model_via_load_weights", True, (0, 30)),
    # Passes in zstd: bodies of tokens and masks shrink several times, for milliseconds of either side.
    Setting("proto_compress_fwdbwd", True, (0, 30)),
    # One long-poll for all samples of a client instead of one for each: a rollout of a thousand has a thousand.
    Setting("sample_use_retrieve_futures", True, (0, 30)),
    # Custom losses go up as graphs and are computed here, in one pass instead of two.
    Setting("custom_loss_server_side", True, (0, 38)),
    # Copies of a sampling client get their numbers here: drawn at random, two could be the same.
    Setting("sample_join_sampling_session", True, (0, 38)),
)

TOKENS_FOR_MINT_KEYS: Version = (0, 30)
"""Before this version a client that presents an `sk-` key, which the SDK itself refuses, is MinT's published one.

It gets the key past the SDK's first check and not past its second, which is there only where no token is exchanged for
the key. MinT's own package begins with this version, and needs none.
"""

DYNAMIC = {"sample_cancel_enabled": True}
"""Settings that the SDK asks for again and again: it shall tell of samples that nobody waits for any more."""


def settings_for(sdk_version: str | None, *, jwt_auth: bool, mint_key: bool) -> dict[str, bool]:
    """What a client of this version is told; one that does not say its version gets nothing that depends on it.

    Args:
        jwt_auth: whether all clients are to exchange their keys for tokens.
        mint_key: whether the client presents an `sk-` key.
    """
    found = re.match(r"(\d{1,9})\.(\d{1,9})", sdk_version or "")
    settings = {"pjwt_auth_enabled": True} if jwt_auth else {}
    if found is None:
        return settings
    version = int(found[1]), int(found[2])
    if mint_key and version < TOKENS_FOR_MINT_KEYS:
        settings["pjwt_auth_enabled"] = True
    return settings | {each.name: each.on for each in SETTINGS if each.since <= version < each.until}
