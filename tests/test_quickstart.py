"""The quickstart, as `make quickstart` runs it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.programs import check_done

EXAMPLE = Path(__file__).parent.parent / "examples" / "quickstart.py"


def test_the_quickstart_learns_by_sft_and_again_by_rl(tmp_path: Path) -> None:
    picture = tmp_path / "out" / "curves.png"
    command = [sys.executable, "-m", "mint.cli", "run", str(EXAMPLE), "--picture", str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    check_done(done)
    before, after_sft, after_rl = (int(right) for right in re.findall(r"\((\d+) of 80\)", done.stdout))
    assert before < 10
    assert after_sft > before + 20
    assert after_rl > after_sft + 5
    assert picture.read_bytes().startswith(b"\x89PNG")
