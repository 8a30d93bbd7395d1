"""Mine (Fig. 10): the prompt that turns the exemplars of the best cluster into one template, and its answer's format.

### 1. Pattern Summary
### 2. Performance Assessment
### 3. Optimized Paths
- Best Path: Step 1 -> Step 2 -> ... -> Item Recommendation
"""

from __future__ import annotations

from offline.chains.template import ARROW, STEP_WORDS
from offline.llm.base import Abstract, Message, Prompt, Sampling

BEST = "- Best Path:"
_SYSTEM = "You are an expert in reasoning patterns of recommender systems."


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
