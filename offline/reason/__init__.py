"""Stage `reason` (section 3.3.1, Algorithm 2): a chain of K steps per user and split, and its step embeddings H.

Output folder, for each split of `train`, `valid`, `test` and `serve`:

    {split}.npy      float16 [U, K, D]; row u is user u's H, unit vectors by step; all zeros for a user without a chain
    {split}.jsonl    {"user": id, "history_length": n, "steps": [K texts, or none]}, in row order
    failures.jsonl   {"user": id, "split": split, "fault": why there is no chain}
    summary.json     who wrote, encoder, template, sizes, shares, usage, cost and seconds

A chain reads the history before its split's target and nothing after it (`serve` has no target and reads all of it);
what else it may know is up to the writer (see `offline.reason.writers`).
"""

from offline.reason.output import load_reasoning, load_steps, load_template, present
from offline.reason.stage import reason

__all__ = ["load_reasoning", "load_steps", "load_template", "present", "reason"]
