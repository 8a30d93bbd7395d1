"""Mine (Fig. 10): the prompt that turns the exemplars of the best cluster into one template, and its answer's format.

### 1. Pattern Summary
### 2. Performance Assessment
### 3. Optimized Paths
- Best Path: Step 1 -> Step 2 -> ... -> Item Recommendation
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

from offline.chains import history
from offline.chains.explore import LONG, read_path
from offline.chains.template import ARROW, STEP_WORDS
from offline.chains.thoughts import without_thoughts
from offline.errors import AnswerError
from offline.llm.base import Abstract, Message, Prompt, Sampling

BEST = "- Best Path:"
NOTE_CHARS = 600
_SYSTEM = "You are an expert in reasoning patterns of recommender systems."
_PATH = r"best\s+path\b[^:：\n]*[:：](.*?)(?=\n[\s\-*•]*improvement\s+logic|\n\s*#|\Z)"
_BEST = (  # where a line begins so; else wherever the words are
    re.compile(r"^[\s\-*•#\d.)]*" + _PATH, re.DOTALL | re.IGNORECASE | re.MULTILINE),
    re.compile(_PATH, re.DOTALL | re.IGNORECASE),
)
_NOTES = {
    name: re.compile(rf"^[\s\-*•]*{name}[^:：\n]*[:：][\s*]*(\S[^\n]*)", re.MULTILINE | re.IGNORECASE)
    for name in ("core logic", "key steps", "why it works", "limitations", "improvement logic")
}


@dataclass(frozen=True, slots=True)
class Mined:
    """An abstraction, read."""

    steps: tuple[str, ...]
    notes: dict[str, str]  # what the model says of the pattern, by the prompt's labels in lower case


def prompt(task: Abstract, sampling: Sampling) -> Prompt:
    """Ask for the path that the exemplars share, made better."""
    exemplars = "\n".join(f"({place}) {ARROW.join(path)}" for place, path in enumerate(task.exemplars, 1))
    question = f"""A cluster of reasoning paths that recommend products, rank {task.rank} of {task.clusters} by \
performance, {task.recall:.2%} Recall@20. Its most typical paths:
{exemplars}

Answer in this form, and keep the path clear and not overly complex:

### 1. Pattern Summary
- Core Logic: one sentence on what these paths do
- Key Steps: what marks the pattern
### 2. Performance Assessment
- Why it works: what makes it hit as often as it does
- Limitations: what keeps it from hitting more often
### 3. Optimized Paths
{BEST} the best path, each step at most {STEP_WORDS} words: Step 1 -> Step 2 -> ... -> Item Recommendation
- Improvement Logic: how it deals with the limitations"""
    return Prompt((Message("system", _SYSTEM), Message("user", question)), sampling, task)


def parse(text: str) -> Mined:
    """Read an answer. Raises AnswerError, with the reason, unless it has a path that can be a template as it stands."""
    plain = html.unescape(without_thoughts(text)).replace("**", "")
    found = next((match for pattern in _BEST if (match := pattern.search(plain))), None)
    if found is None:
        raise AnswerError(f"no `{BEST}`")
    repairs: list[str] = []
    steps = read_path(found[1], repairs)
    if LONG in repairs:
        raise AnswerError(LONG)
    notes = {name: match[1] for name, pattern in _NOTES.items() if (match := pattern.search(plain))}
    return Mined(steps, {name: history.clean(note, NOTE_CHARS) for name, note in notes.items()})
