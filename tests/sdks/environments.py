"""An environment for each client package from the registry, under `.sdks/`.

Each holds the packages that are tested, and those that they need in another version than MinT does. All else it finds
in the environment that runs this: torch, which the SDK's custom losses work with, is not installed six times. pip
settles what is missing, and takes no package from there as its own to change.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

FOLDER = Path(__file__).parents[2] / ".sdks"


def environment(*requirements: str) -> Path:
    """The interpreter of an environment with these packages, which is made where it is not there.

    Raises:
        RuntimeError: pip cannot install them; with its own words.
    """
    folder = FOLDER / "-".join(requirement.replace("==", "-") for requirement in requirements)
    python, stamp = folder / "bin" / "python", folder / "installed"
    if not stamp.exists():
        _make(folder, "install", *requirements)
        stamp.touch()
    return python


def newest(package: str) -> Path:
    """The interpreter of an environment with the newest release, asked for anew each time."""
    folder = FOLDER / f"{package}-newest"
    _make(folder, "install", "--upgrade", package)
    return folder / "bin" / "python"


def _make(folder: Path, *arguments: str) -> None:
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "mint-environment.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = [folder / "bin" / "python", "-m", "pip", "--quiet", *arguments]
    done = subprocess.run(command, env=outside(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr}")


def outside(**variables: str) -> dict[str, str]:
    """Variables for an interpreter that shall know nothing of this tree, nor of the user's servers and keys."""
    ours = ("MINT_", "TINKER_", "PYTHON")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | variables


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(environment(name))
