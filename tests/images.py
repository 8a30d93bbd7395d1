"""Replays the steps of a Dockerfile without a container engine: paths are mapped into a folder, commands are run as is.

What it does not show: that the base image exists and has what the steps call, and that files are readable for USER.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

import dockerfile
import pathspec

# Folders that the image owns. Everything else that a command names (/bin/sh, /tmp) is the machine's own.
OWNED = re.compile(r"(?<![\w./$}-])/(?=(?:opt|src|dist|releases|models|var/cache/pip)\b)")
CACHE = "/var/cache/pip"
# How this machine reaches its package index; an image is built where none of it is needed.
CONNECTION = re.compile(r"(PIP|SSL|REQUESTS)_|(https?|no)_proxy$", re.IGNORECASE)


@dataclass
class Image:
    """What a stage left behind. Its files are under `root` only while it was the last stage that was built."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = ""
    entrypoint: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)

    def path(self, path: str) -> Path:
        """Where a path of the image lies."""
        return self.root / path.lstrip("/")

    def map(self, text: str) -> str:
        """A text in which the image's own paths are where they lie."""
        return OWNED.sub(f"{self.root}/", text)


class Replay:
    """Builds stages of one Dockerfile, each at the same place, as in a container: what one wrote fits the next."""

    def __init__(self, file: Path, folder: Path) -> None:
        self._context = file.parent
        self._stages: dict[str, list[dockerfile.Command]] = {}
        self._global: dict[str, str] = {}
        self._built: dict[str, Image] = {}
        self._root = folder / "root"
        self._kept = folder / "stages"
        self._cache = subprocess.run(
            [sys.executable, "-m", "pip", "cache", "dir"], check=True, capture_output=True, text=True
        ).stdout.strip()
        self._base = {
            name: value for name, value in os.environ.items() if CONNECTION.match(name) and name != "PIP_CACHE_DIR"
        }
        self._base |= {"HOME": str(folder), "PATH": f"{self._python(folder / 'bin')}:/usr/bin:/bin", "LANG": "C.UTF-8"}
        stage: list[dockerfile.Command] | None = None
        for command in dockerfile.parse_file(str(file)):
            if command.cmd == "FROM":
                stage = self._stages.setdefault(command.value[-1], [])
            if stage is None:
                name, _, value = command.value[0].partition("=")
                self._global[name] = value
            else:
                stage.append(command)

    def build(self, name: str) -> Image:
        """Build a stage and those that it needs."""
        needed = [self._stages[name][0].value[0]]
        needed += [_flag(command, "from") for command in self._stages[name] if command.cmd == "COPY"]
        for other in needed:
            if other in self._stages and other not in self._built:
                self.build(other)
        if self._root.exists():
            shutil.rmtree(self._root)
        image = Image(self._root, dict(self._base))
        for command in self._stages[name]:
            getattr(self, f"_{command.cmd.lower()}")(image, command)
        self._built[name] = image
        shutil.copytree(self._root, self._kept / name, symlinks=True, copy_function=os.link)
        return image

    def _from(self, image: Image, command: dockerfile.Command) -> None:
        parent = self._built.get(command.value[0])
        if parent is None:  # an image of a registry
            assert Template(command.value[0]).substitute(self._global).startswith("python:3.11-")
            self._root.mkdir(parents=True)
            return
        image.environment, image.workdir = dict(parent.environment), parent.workdir
        shutil.copytree(self._kept / command.value[0], self._root, symlinks=True, copy_function=os.link)

    def _arg(self, image: Image, command: dockerfile.Command) -> None:
        name, _, value = command.value[0].partition("=")
        image.environment[name] = value

    def _env(self, image: Image, command: dockerfile.Command) -> None:
        for name, value in zip(command.value[::2], command.value[1::2], strict=True):
            image.environment[name] = image.map(Template(value).substitute(image.environment))

    def _workdir(self, image: Image, command: dockerfile.Command) -> None:
        image.workdir = command.value[0]
        image.path(image.workdir).mkdir(parents=True, exist_ok=True)

    def _copy(self, image: Image, command: dockerfile.Command) -> None:
        *sources, target = command.value
        into = image.path(os.path.join(image.workdir, target))  # noqa: PTH118 - an absolute target replaces the folder
        stage = _flag(command, "from")
        for source in sources:
            found = self._kept / stage / source.lstrip("/") if stage else self._context / source
            listed = [found] if found.is_file() else [f for f in found.rglob("*") if f.is_symlink() or f.is_file()]
            if not stage:
                listed = [f for f in listed if not self._ignored(f)]
            assert listed, f"nothing in the build context matches {source}"
            for file in listed:
                place = into / file.relative_to(found) if found.is_dir() else into / found.name
                place.parent.mkdir(parents=True, exist_ok=True)
                (os.link if stage else shutil.copy2)(file, place, follow_symlinks=False)

    def _run(self, image: Image, command: dockerfile.Command) -> None:
        for flag in command.flags:
            assert flag == f"--mount=type=cache,target={CACHE}", flag
            if not image.path(CACHE).is_symlink():
                image.path(CACHE).parent.mkdir(parents=True, exist_ok=True)
                image.path(CACHE).symlink_to(self._cache)
        done = subprocess.run(
            ["/bin/sh", "-ec", image.map(command.value[0])],
            cwd=image.path(image.workdir),
            env=image.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"line {command.start_line}: {command.value[0]}\n{done.stdout}\n{done.stderr}"
        if image.path(CACHE).is_symlink():
            image.path(CACHE).unlink()

    def _user(self, image: Image, command: dockerfile.Command) -> None:
        image.user = command.value[0]

    def _entrypoint(self, image: Image, command: dockerfile.Command) -> None:
        assert command.json, "the shell form would keep SIGTERM from the service"
        image.entrypoint = list(command.value)

    def _healthcheck(self, image: Image, command: dockerfile.Command) -> None:
        assert command.json
        image.healthcheck = list(command.value[1:])

    def _label(self, image: Image, command: dockerfile.Command) -> None:
        pass  # says something about the image, changes nothing in it

    _expose = _label

    def _ignored(self, file: Path) -> bool:
        # Unlike git's, these patterns start at the top, and one that is taken back takes back all beneath it.
        ignored = False
        for line in (self._context / ".dockerignore").read_text(encoding="utf-8").splitlines():
            pattern = line.strip()
            if pattern and not pattern.startswith("#"):
                spec = pathspec.PathSpec.from_lines("gitignore", ["/" + pattern.removeprefix("!")])
                if spec.match_file(file.relative_to(self._context)):
                    ignored = not pattern.startswith("!")
        return ignored

    @staticmethod
    def _python(folder: Path) -> Path:
        """A folder with the `python` of the base image: this interpreter, outside any environment."""
        folder.mkdir(parents=True)
        program = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
        (folder / "python").write_text(f'#!/bin/sh\nexec "{program}" "$@"\n', encoding="utf-8")
        (folder / "python").chmod(0o755)
        return folder


def _flag(command: dockerfile.Command, name: str) -> str:
    return next((flag.partition("=")[2] for flag in command.flags if flag.startswith(f"--{name}=")), "")
