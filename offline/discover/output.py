"""What the stage leaves behind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from offline.discover.evidence import Applied
from offline.discover.mining import Pool
from offline.discover.patterns import Patterns
from offline.discover.report import page
from offline.discover.validate import Chain, Reading
from offline.prepare import ItemText
from offline.stage import write_json


def chain_rows(
    chains: Sequence[Chain], users: Sequence[str], items: Sequence[ItemText], paths: Pool, patterns: Patterns
) -> Iterator[dict[str, Any]]:
    """Every answer of Generate that can be read."""
    for place, chain in enumerate(chains):
        owner = int(paths.owner[place])
        yield {
            "user": users[chain.user],
            "answer": chain.answer,
            "path": list(chain.path),
            "kept": bool(paths.keeps[place]),
            "kept_path": owner,
            "cluster": int(patterns.labels[owner]),
            "predicted": [items[item - 1].id for item in chain.predicted],
            "rank": chain.rank,
            "masked_rank": chain.masked,
            "repairs": list(chain.repairs),
        }


def applied_rows(
    panels: Mapping[str, tuple[Sequence[int], Sequence[Applied]]], users: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Every path or template on every user of its panel; a rank of -1 where no answer came."""
    for panel, (members, applied) in panels.items():
        for one in applied:
            for user, rank, masked in zip(members, one.rank.tolist(), one.masked.tolist(), strict=True):
                yield {"panel": panel, "name": one.name, "user": users[user], "rank": rank, "masked_rank": masked}


def rejected_rows(readings: Mapping[str, Reading], users: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Every answer that cannot be read, and every question without one."""
    for phase, reading in readings.items():
        for row in reading.rejected:
            user = None if row.user is None else users[row.user]
            yield {"phase": phase, "user": user, "answer": row.answer, "reason": row.reason, "text": row.text}


def write_found(folder: Path, evidence: dict[str, Any]) -> None:
    """Both templates with their evidence, all of the evidence, the short of it, and the report."""
    mined = evidence["mined"]
    write_json(folder / "evidence.json", evidence)
    own = {key: value for key, value in evidence.items() if key not in {"examples", "rejected"}}
    own["mine"] = {key: value for key, value in evidence["mine"].items() if key != "map"}
    for name, found in (("template", mined), ("top-k", evidence["single"])):
        about = {"dataset": evidence["dataset"], "backend": evidence["backend"], "evidence": own}
        write_json(folder / f"{name}.json", {"steps": found["steps"], **about})
    write_json(
        folder / "summary.json",
        {
            "dataset": evidence["dataset"],
            "backend": evidence["backend"],
            "template": mined["steps"],
            "abstracted_by_backend": mined["by_backend"],
            **{
                key: evidence["generate"][key] for key in ("answers", "unreadable", "different_paths", "kept", "pruned")
            },
            "clusters": evidence["mine"]["k"],
            "panels": evidence["panels"],
            "recall@20": {
                row["name"]: round(row["recall@20"]["value"], 5)
                for row in (*evidence["templates"], *evidence["references"])
            },
            "cost": evidence["cost"],
        },
    )
    (folder / "report.html").write_text(page(evidence), encoding="utf-8")
