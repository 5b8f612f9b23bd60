"""When each session last gave a sign of life."""

from __future__ import annotations

from time import monotonic


class Presence:
    """Signs of life by this process's clock, which counts from its start and stands still while the machine sleeps.

    So nobody is held to be gone because the server was.
    """

    def __init__(self) -> None:
        self._started = monotonic()
        self._seen: dict[str, float] = {}

    def start(self) -> None:
        """Clients can be heard from now on."""
        self._started = monotonic()

    def beat(self, session_id: str | None) -> None:
        """A session's client lives: it says so, sends something, or waits for a result.

        A sample without a session stands for one, by its request id.
        """
        if session_id is not None:
            self._seen[session_id] = monotonic()

    def absent(self, session_id: str, seconds: float) -> bool:
        """Whether nothing was heard of a session for longer than this."""
        return monotonic() - max(self._started, self._seen.get(session_id, 0.0)) > seconds

    def forget(self, seconds: float) -> None:
        """Drop what says no more than that a session is absent."""
        self._seen = {session_id: seen for session_id, seen in self._seen.items() if monotonic() - seen <= seconds}
