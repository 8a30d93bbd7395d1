from __future__ import annotations

from pathlib import Path

import numpy as np

from offline.results.lines import Lines
from offline.results.runs import keep, load_runs
from offline.results.sparsity import by_group, groups
from tests.offline.results.made import evaluated

PAPER = {"groups": {name: {"users": {"0": 0.5}, "items": {}} for name in ("beauty", "sports")}}


def test_groups_are_compared_over_the_draws_that_both_have(tmp_path: Path) -> None:
    """HSTU was measured with two seeds, SCoTER-H with the first alone."""
    strength = {("hstu", False): 0.2, ("scoter_h", True): 0.3}
    keep(evaluated(tmp_path / "one", {}, strength), "one", tmp_path / "docs")
    other = evaluated(tmp_path / "two", {"train": {"seed": 2}}, {("hstu", False): 0.4})
    keep(other, "two", tmp_path / "docs")
    lines = Lines(load_runs(tmp_path / "docs").runs)
    (line,), (backbone,) = lines.full("beauty", "scoter_h"), lines.full("beauty", "hstu")
    assert len(backbone.draws) == 2
    for kind in ("users", "items"):
        found = by_group(line, backbone, kind)
        assert found is not None
        for ours, of in zip(found, (line, backbone), strict=True):
            np.testing.assert_allclose(ours, of.rows[0]["groups"][kind]["recall@10"])


def test_a_group_s_gain_is_over_its_backbone_and_the_paper_s_stands_beside_its_recall(tmp_path: Path) -> None:
    keep(
        evaluated(tmp_path / "one", {}, {("hstu", False): 0.2, ("scoter_h", True): 0.4}),
        "one",
        tmp_path / "docs",
    )
    lines = Lines(load_runs(tmp_path / "docs").runs)
    (told, _) = groups(lines, PAPER, set())
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in told.splitlines() if "user group 0" in row]
    assert [row[2] for row in rows] == ["recall@10", "ndcg@10"]
    (line,), (backbone,) = lines.full("beauty", "scoter_h"), lines.full("beauty", "hstu")
    for row in rows:
        ours, theirs = (one.rows[0]["groups"]["users"][row[2]][0] for one in (line, backbone))
        assert row[5] == f"{ours / theirs - 1:+.1%}"
        assert ours > theirs
    assert [row[6] for row in rows] == ["*+50.0%*", "–"]
