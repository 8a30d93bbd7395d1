"""A virtual environment for RecBole, which needs older packages than ours."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import venv
from importlib.resources import files
from pathlib import Path

from offline.errors import StageError
from offline.stage import console

_IMPORTS = "import recbole.data, recbole.trainer, recbole.model.sequential_recommender"
_DONE = "scoter-baselines"  # holds the digest of what is installed


def environment(folder: Path) -> Path:
    """The interpreter of the environment in `folder`, which is made where it is not there, or not up to date.

    Raises StageError if `folder` holds something else, or if a package cannot be installed.
    """
    pinned = files("offline.baselines") / "requirements.txt"
    digest = hashlib.sha256(pinned.read_bytes()).hexdigest()
    folder = folder.absolute()  # not resolved: the interpreter is a link out of it
    interpreter = folder / "bin" / "python"
    done = folder / _DONE
    if done.is_file() and done.read_text(encoding="ascii") == digest:
        return interpreter
    if folder.exists():
        if not (folder / "pyvenv.cfg").is_file() and any(folder.iterdir()):
            raise StageError(f"{folder} is no virtual environment: name another folder with --environment")
        shutil.rmtree(folder)
    console.print(f"[bold]▶ RecBole's own environment[/] [dim]({folder}; some minutes, once)[/]", soft_wrap=True)
    try:
        venv.create(folder, with_pip=True)
        requirements = folder / "requirements.txt"
        requirements.write_bytes(pinned.read_bytes())
    except (OSError, subprocess.CalledProcessError) as error:
        raise StageError(f"cannot make a virtual environment in {folder}: {error}") from error
    pip = [
        str(interpreter),
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--no-input",
        "install",
        "--quiet",
        "--no-deps",
    ]
    installed = subprocess.run([*pip, "-r", str(requirements)], capture_output=True, text=True, check=False)
    if installed.returncode:
        lines = [line for line in installed.stderr.splitlines() if "ERROR" in line] or [installed.stderr[-500:]]
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise StageError(f"RecBole's packages cannot be installed for Python {python} (3.11 is tested): {lines[0]}")
    # --no-deps takes the list at its word: a package that it lacks would show in the middle of a run otherwise.
    imported = subprocess.run([str(interpreter), "-I", "-c", _IMPORTS], capture_output=True, text=True, check=False)
    if imported.returncode:
        raise StageError(f"RecBole cannot be imported from {folder}: {imported.stderr.strip().splitlines()[-1]}")
    done.write_text(digest, encoding="ascii")
    return interpreter
