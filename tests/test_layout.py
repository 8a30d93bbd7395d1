"""What the README and the Makefile promise is there."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from offline.recipe import load_recipe, recipe_names

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "k8s/README.md",
    *(str(p.relative_to(ROOT)) for p in sorted(ROOT.glob("docs/**/*.md"))),
]
# Spelled so that this file does not match itself.
MACHINE_PATH = re.compile("(?<![\\w.~}-])/(" + "|".join(["wor" + "k", "roo" + "t", "hom" + "e", "Use" + "rs"]) + ")/")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def tracked() -> list[Path]:
    try:
        listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    except (OSError, subprocess.CalledProcessError):
        # Unpacked from an archive: everything in it was tracked.
        return [
            p for p in ROOT.rglob("*") if p.is_file() and not {".venv", ".tools", "__pycache__", ".demo"} & set(p.parts)
        ]
    return [ROOT / name for name in listing.decode().split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize(
    "entry",
    [
        "service",
        "offline",
        "tests",
        "loadtest",
        "model_repo",
        "docs/decisions",
        "k8s",
        "monitoring",
        "Dockerfile",
        "compose.yaml",
        "locks/dev.txt",
        "locks/service.txt",
        "locks/build.txt",
        "pyproject.toml",
        "Makefile",
        "LICENSE",
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        ".ci/run",
    ],
)
def test_top_level_entries_exist(entry: str) -> None:
    assert (ROOT / entry).exists()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_targets_of_the_documents_exist(document: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", read(document), re.MULTILINE))
    assert named <= targets


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_of_the_documents_lead_somewhere(document: str) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", read(document))
    missing = [link for link in links if not (ROOT / document).parent.joinpath(link).exists()]
    assert not missing


def test_every_decision_is_listed() -> None:
    pages = {page.name for page in (ROOT / "docs" / "decisions").glob("0*.md")}
    assert pages == set(re.findall(r"\((0\d+-[\w-]+\.md)\)", read("docs/decisions/README.md")))


def test_readme_shows_the_recipes_there_are() -> None:
    assert recipe_names()
    for name in recipe_names():
        assert f"`{name}`" in read("README.md")


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_parse_and_carry_their_name(name: str) -> None:
    assert load_recipe(name).name == name


def test_commands_are_installed_from_the_package() -> None:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    assert set(project["scripts"]) == {"scoter", "scoter-serve"}


def test_locks_pin_versions_and_name_no_index() -> None:
    for name in ("locks/dev.txt", "locks/service.txt"):
        lines = [line for line in read(name).splitlines() if line and not line.startswith(("#", " "))]
        assert len(lines) > 20
        assert all(re.match(r"[a-z0-9-]+==\S+", line) for line in lines)
    assert not re.search(r"^(torch|transformers|scikit-learn|onnx)==", read("locks/service.txt"), re.MULTILINE)
    assert "--hash=sha256:" in read("locks/service.txt")


def test_the_lock_installs_no_cuda() -> None:
    assert not re.search(r"^(nvidia-|cuda-|triton==)", read("locks/dev.txt"), re.MULTILINE)


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in tracked()
        if path.suffix not in {".png", ".onnx", ".npy", ".npz"}
        for line in path.read_text(encoding="utf-8").splitlines()
        if MACHINE_PATH.search(line)
    ]
    assert not found
