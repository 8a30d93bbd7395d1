"""The reasoning template: names of the K steps that every chain is written in (section 3.2, appendix F)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from offline.errors import RecipeError
from offline.stage import read_json

ARROW = " -> "
MIN_STEPS, MAX_STEPS = 2, 8
STEP_WORDS = 8
ARROWS = re.compile(
    r"\s*(?:[-=~–—]+>|\$?\\(?:long)?rightarrow\$?|\$?\\to\b\$?|[→⇒⇨⟶⟹↦➔➙➛➜➝➞➡➤►▶»›]\ufe0f?)\s*", re.IGNORECASE
)
_NUMBER = re.compile(r"^(?:step\s*)?\(?\d{1,2}\s*[.:)]\s*(?=\S)|^step\s*\d{1,2}\s*[-–—]\s*(?=\S)", re.IGNORECASE)
_SPECIAL = re.compile(r"[\\.^$|?*+()\[\]{}]")
_TRIMMED = " .,;:*_\"'`()[]{}<>|#…"


@dataclass(frozen=True, slots=True)
class Template:
    """K step names, the last of which recommends."""

    steps: tuple[str, ...]

    def __post_init__(self) -> None:
        if not MIN_STEPS <= len(self.steps) <= MAX_STEPS:
            raise RecipeError(f"a template has {MIN_STEPS} to {MAX_STEPS} steps, not {len(self.steps)}: {self}")
        if any(not step.strip() for step in self.steps):
            raise RecipeError(f"a template's step has no name: {self}")
        if len({step.casefold() for step in self.steps}) < len(self.steps):
            raise RecipeError(f"two steps of a template have the same name: {self}")

    def __str__(self) -> str:
        return ARROW.join(self.steps)

    @classmethod
    def parse(cls, path: str) -> Self:
        """From `Step -> Step -> ...`, with any of the arrows that models write. Raises RecipeError."""
        return cls(tuple(split_path(path)))

    @classmethod
    def load(cls, path: Path) -> Self:
        """From a template artefact: JSON with `steps`. Raises RecipeError."""
        try:
            body: Any = read_json(path)
            return cls(tuple(map(str, body["steps"])))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RecipeError(f"cannot read a template from {path}: {error}") from error


def split_path(path: str) -> list[str]:
    """The steps of a `cot_path`, without their arrows, numbers and white space."""
    return [step for part in ARROWS.split(path.strip()) if (step := _step(part))]


def literal(text: str) -> str:
    """A regular expression of nothing but this text, in the dialect that all backends share."""
    # Not re.escape(), which also escapes spaces and hyphens: other dialects refuse that.
    return _SPECIAL.sub(r"\\\g<0>", text)


def _step(text: str) -> str:
    name = " ".join(text.split())
    while True:  # what is left of `**1. "Name"**` is trimmed and numbered again
        bare = _NUMBER.sub("", name.strip(_TRIMMED))
        if bare == name:
            return name
        name = bare


# Appendix F: what the paper compares its mined templates with.
MANUAL = {
    "two-step": Template(("User Interest Mining", "Item Tag Prediction & Recommendation")),
    "three-step": Template(("User Profile Summary", "User Interest Extraction", "Item Recommendation")),
    "five-step": Template(
        (
            "Behavioral Data Analysis",
            "Interest Pattern Recognition",
            "Preference Trend Analysis",
            "Predictive Feature Generation",
            "Targeted Item Recommendation",
        )
    ),
}


def template(name: str) -> Template:
    """By name (`five-step`), from a `.json` artefact, or spelled out (`A -> B -> C`). Raises RecipeError."""
    if name in MANUAL:
        return MANUAL[name]
    if name.endswith(".json"):
        return Template.load(Path(name))
    if len(split_path(name)) < MIN_STEPS:
        raise RecipeError(f"no template {name!r}: give one of {', '.join(MANUAL)}, a .json file or `A -> B -> C`")
    return Template.parse(name)
