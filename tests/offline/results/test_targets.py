from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from offline.results.lines import Lines
from offline.results.runs import keep, load_runs
from offline.results.targets import targets
from tests.offline.results.made import USERS, evaluated


def verdicts(docs: Path) -> dict[str, str]:
    """By what is wanted."""
    return {target.what: target.verdict for target in targets(Lines(load_runs(docs).runs))}


def test_a_target_that_was_missed_says_by_how_much(tmp_path: Path) -> None:
    strength = {("hstu", False): 0.08, ("scoter_h", True): 0.09}
    keep(evaluated(tmp_path / "one", {}, strength), "one", tmp_path / "docs")
    lines = Lines(load_runs(tmp_path / "docs").runs)
    ours, fused = (lines.full("beauty", model)[0].mean("recall@10") for model in ("hstu", "scoter_h"))
    assert ours < 0.093
    found = verdicts(tmp_path / "docs")
    apart = f"{0.093 - ours:.4f}".removeprefix("0")
    assert found["HSTU on beauty, Recall@10"] == f"missed by {apart} ({1 - ours / 0.093:.1%})"
    points = 100 * (0.2763 - (fused / ours - 1))
    assert found["SCoTER-H over its own HSTU on beauty, relative Recall@10"] == f"missed by {points:.1f} points"


def test_a_single_lucky_draw_is_not_the_lift(tmp_path: Path) -> None:
    """Where three seeds of another way are there: nor is it what the control stands beside."""
    for seed in (1, 2, 3):
        made = evaluated(
            tmp_path / f"{seed}", {"train": {"seed": seed}}, {("hstu", False): 0.2, ("scoter_h", True): 0.22}
        )
        keep(made, f"seed-{seed}", tmp_path / "docs")
    lucky = evaluated(tmp_path / "lucky", {"model": {"dim": 32}}, {("hstu", False): 0.2, ("scoter_h", True): 0.9})
    keep(lucky, "lucky", tmp_path / "docs")
    assert verdicts(tmp_path / "docs")["SCoTER-H over its own HSTU on beauty, relative Recall@10"].startswith(
        "missed by"
    )


@pytest.mark.parametrize("users, verdict", [(5, "met"), (6, "not met: a lift stays")])
def test_a_lift_is_gone_where_five_in_a_hundred_have_as_much_by_chance(
    tmp_path: Path, users: int, verdict: str
) -> None:
    """So many users whom only the control serves, and none whom only the backbone does: p is 2^(1 - users)."""
    luck = np.sort(np.random.default_rng([1, 0]).random(USERS))  # as `evaluated` has it of seed 1, masked
    strength = {("hstu", False): float(luck[80]), ("scoter_h", True): float(luck[80 + users])}
    made = evaluated(tmp_path / "shuffled", {"ablation": {"control": "shuffled"}}, strength)
    keep(made, "shuffled", tmp_path / "docs")
    assert verdicts(tmp_path / "docs")["that lift with another user's H, on beauty"] == verdict
