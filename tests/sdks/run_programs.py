"""Runs programs with the SDK of its own environment; tells of each in a line of JSON.

    ENVIRONMENT/bin/python tests/sdks/run_programs.py sessions training …

It must import nothing of MinT: it is run by an interpreter that has none.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path

import tinker

sys.path.insert(0, str(Path(__file__).parent))
common = import_module("programs.common")


def outcome(name: str) -> dict[str, object]:
    """What became of a program; its own words go to standard error."""
    started = time.monotonic()
    status, reason = "ok", ""
    with contextlib.redirect_stdout(sys.stderr):
        try:
            import_module(f"programs.{name}").main()
        except common.Absent as error:
            status, reason = "absent", str(error)
        except BaseException:
            status, reason = "failed", traceback.format_exc()
    return {"program": name, "status": status, "reason": reason, "seconds": round(time.monotonic() - started, 2)}


for program in sys.argv[1:]:
    print(json.dumps({"sdk": tinker.__version__, **outcome(program)}), flush=True)
# the SDK's threads do not end by themselves in every version
os._exit(0)
