"""Where committed checkpoint folders are: what is asked of such a place, and the one beside the server.

The worker always writes to, and reads from, a folder below `root`; `mint.store.objects` keeps them elsewhere besides.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Protocol

from mint.errors import MintError
from mint.store import files

DEPLOYMENT = "deployment"
"""A file or object that says which database knows what lies beside it."""


class CheckpointStore(Protocol):
    """Committed folders by name. Methods that a store of objects takes long for are called in threads.

    Attributes:
        root: where folders are that can be read now, and those that are being written.
    """

    root: Path

    def claim(self, deployment_id: str) -> None:
        """See that it belongs to this deployment; a store that belongs to none is this one's from now on.

        Raises:
            MintError: it is another's: its sweeper and ours would delete each other's checkpoints. Or it is not there.
        """
        ...

    def commit(self, name: str) -> None:
        """Keep a staged folder, whole, under its final name, for good; if there is one of that name, that one stays.

        It is here then.

        Raises:
            OSError: the disk or the store refuses; the folder stays staged.
            DamagedError: the one that was there is not what was saved.
        """
        ...

    def check(self, name: str, path: str, field: str) -> None:
        """As `files.check`, as far as that can be told without asking elsewhere."""
        ...

    def is_gone(self, name: str) -> bool:
        """Whether a folder is known to be nowhere, without asking elsewhere."""
        ...

    def is_here(self, name: str) -> bool:
        """Whether there is nothing to be fetched before a folder is read; it stays for a while then."""
        ...

    def fetch(self, name: str) -> None:
        """Bring a folder here, if it is not.

        Raises:
            NotFoundError: it is gone.
            DamagedError: its contents are not those that were saved.
            OSError: the disk or the store refuses.
        """
        ...

    def trim(self, kept: Collection[str]) -> None:
        """Drop local copies beyond what the cache may hold, but for those that are `kept`."""
        ...

    def remove(self, name: str) -> None:
        """As `files.remove`, wherever there is something of that name."""
        ...

    def older_than(self, moment: float) -> Iterator[str]:
        """As `files.older_than`, wherever there are folders."""
        ...


class LocalStore:
    """Folders on a disk of the server's, renamed when they are committed."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def claim(self, deployment_id: str) -> None:
        """See `CheckpointStore`. Beside it are snapshots, which belong to the same database."""
        marker = self.root.with_name(DEPLOYMENT)
        if not marker.exists():
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.write_text(deployment_id)
        refuse_others(marker.read_text(), deployment_id, str(marker.parent), "--data-dir")

    def commit(self, name: str) -> None:
        """See `CheckpointStore`."""
        files.commit(self.root, name)

    def check(self, name: str, path: str, field: str) -> None:
        """See `CheckpointStore`."""
        files.check(self.root / name, path, field)

    def is_gone(self, name: str) -> bool:
        """See `CheckpointStore`."""
        return not (self.root / name).is_dir()

    def is_here(self, name: str) -> bool:
        """See `CheckpointStore`: what is not here is nowhere."""
        del name
        return True

    def fetch(self, name: str) -> None:
        """See `CheckpointStore`."""

    def trim(self, kept: Collection[str]) -> None:
        """See `CheckpointStore`."""

    def remove(self, name: str) -> None:
        """See `CheckpointStore`."""
        files.remove(self.root, name)

    def older_than(self, moment: float) -> Iterator[str]:
        """See `CheckpointStore`."""
        return files.older_than(self.root, moment)


def refuse_others(found: str, deployment_id: str, where: str, option: str) -> None:
    """See that a mark is this deployment's.

    Raises:
        MintError: it is another's.
    """
    if found.strip() != deployment_id:
        raise MintError(
            f"{where} belongs to another database than the one that was given. A server deletes what its database does "
            f"not know: give the database that knows it, or another {option}"
        )
