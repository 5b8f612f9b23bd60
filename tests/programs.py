"""Programs that tests run as processes of their own."""

from __future__ import annotations

import signal
from subprocess import CompletedProcess


def check_done(program: CompletedProcess[str]) -> None:
    """Assert that it ran to its end.

    The threads of the SDK's HTTP client now and then abort an interpreter that is leaving, without a word.
    """
    aborted = program.returncode == -signal.SIGABRT and not program.stderr
    assert program.returncode == 0 or aborted, program.stdout + program.stderr
