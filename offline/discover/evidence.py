"""What was found, as JSON can hold it: every number that the report shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offline.discover.estimate import Difference, mean_difference, paired, wilson
from offline.discover.mining import Pool, Quality, best
from offline.discover.patterns import Patterns, flat
from offline.discover.validate import Reading
from offline.metrics import gains, ndcg

CUTOFF = 20
DRAWN = 3000  # paths on the map
SHOWN = 200  # characters of a rejected answer in the report


@dataclass(frozen=True, slots=True)
class Applied:
    """A path or template, applied to a panel: ranks int64 [users], 0 for a miss, -1 where no answer came."""

    name: str
    steps: tuple[str, ...]
    rank: NDArray[np.int64]
    masked: NDArray[np.int64]
    unreadable: int = 0
    other_path: int = 0  # answers that named another path than the one asked for

    @property
    def answered(self) -> NDArray[np.bool_]:
        """Users with an answer, [users]."""
        return self.rank >= 0

    @property
    def hits(self) -> int:
        """Users whose target was found."""
        return int((self.rank > 0).sum())


@dataclass(frozen=True, slots=True)
class Abstraction:
    """From exemplars to a template."""

    steps: tuple[str, ...]
    exemplars: tuple[tuple[str, ...], ...]
    by_backend: bool  # False: no answer to the Mine prompt could be read, and this is the first exemplar
    reasons: tuple[str, ...]  # why answers could not be read
    notes: dict[str, str]  # what the backend says of the pattern

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


def generated(reading: Reading, prompts: int, per_prompt: int, paths: Pool, similarity: float) -> dict[str, Any]:
    """From prompts to kept paths."""
    unreadable = [row for row in reading.rejected if row.answer is not None]
    hits, n = sum(chain.rank > 0 for chain in reading.chains), len(reading.chains)
    masked = sum(chain.masked > 0 for chain in reading.chains)
    return {
        "prompts": prompts,
        "answers_asked": prompts * per_prompt,
        "prompts_without_answer": len(reading.rejected) - len(unreadable),
        "answers": n + len(unreadable),
        "unreadable": len(unreadable),
        "readable": n,
        "repaired": sum(bool(chain.repairs) for chain in reading.chains),
        "different_paths": paths.different,
        "similarity": similarity,
        "pruned": paths.different - len(paths.kept),
        "kept": len(paths.kept),
        "recommendations": round(float(np.mean([chain.recommendations for chain in reading.chains])), 2),
        "different_items": round(float(np.mean([len(chain.predicted) for chain in reading.chains])), 2),
        "hits": hits,
        "recall": asdict(wilson(hits, n)),
        "recall_masked": asdict(wilson(masked, n)),
        "repairs": dict(Counter(repair for chain in reading.chains for repair in chain.repairs).most_common()),
    }


def rejected(readings: dict[str, Reading]) -> list[dict[str, Any]]:
    """Reasons, how often, and the beginning of one such answer."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for phase, reading in readings.items():
        for row in reading.rejected:
            reason = row.reason if row.answer is not None else f"no answer: {row.reason}"
            entry = rows.setdefault(
                (phase, reason), {"phase": phase, "reason": reason, "count": 0, "example": row.text[:SHOWN]}
            )
            entry["count"] += 1
    return sorted(rows.values(), key=lambda entry: -entry["count"])


def clustered(
    paths: Pool, patterns: Patterns, found: Sequence[Quality], mean: float, weight: float, typical: Sequence[int]
) -> dict[str, Any]:
    """Patterns, their quality, the silhouette curve and a map. `typical[c]` is the kept path nearest to centroid c."""
    places, share = flat(paths.vectors)
    spread = np.unique(np.linspace(0, len(places) - 1, min(DRAWN, len(places))).astype(int))
    winner = best(found)
    others = [one.quality for place, one in enumerate(found) if place != winner]
    return {
        "k": patterns.k,
        "silhouette": {str(k): value for k, value in patterns.curve.items()},
        "shrinkage": weight,
        "mean": mean,
        "winner": winner,
        "clear": all(other.high < found[winner].quality.low for other in others),
        "clusters": [
            {
                "cluster": place,
                "typical": list(paths.kept[typical[place]].steps),
                "paths": one.paths,
                "answers": one.answers,
                "hits": one.hits,
                "applied": one.applied,
                "applied_hits": one.applied_hits,
                "recall": asdict(wilson(one.hits + one.applied_hits, one.answers + one.applied)),
                "literal": one.literal,
                "quality": asdict(one.quality),
            }
            for place, one in enumerate(found)
        ],
        "map": {
            "variance": share,
            "points": [
                [round(float(x), 4), round(float(y), 4), int(patterns.labels[row]), paths.kept[row].answers]
                for row, (x, y) in zip(spread.tolist(), places[spread], strict=True)
            ],
        },
    }


def compared(applied: Sequence[Applied], reference: str | None) -> list[dict[str, Any]]:
    """Each path's Score on a panel, and how `reference` does against it on the same users."""
    against = next((one for one in applied if one.name == reference), None)
    return [_score(one) | ({} if against is None else {"against": _against(against, one)}) for one in applied]


def _score(one: Applied) -> dict[str, Any]:
    rank, masked = one.rank[one.answered], one.masked[one.answered]
    return {
        "name": one.name,
        "steps": list(one.steps),
        "users": len(rank),
        "no_answer": int((~one.answered).sum()),
        "unreadable": one.unreadable,
        "other_path": one.other_path,
        "hits": one.hits,
        "recall@20": asdict(wilson(one.hits, len(rank))),
        "ndcg@20": ndcg(rank, CUTOFF) if len(rank) else 0.0,
        "masked_recall@20": asdict(wilson(int((masked > 0).sum()), len(rank))),
        "masked_ndcg@20": ndcg(masked, CUTOFF) if len(rank) else 0.0,
    }


def _against(a: Applied, b: Applied) -> dict[str, Any]:
    both = a.answered & b.answered
    ours, theirs = a.rank[both], b.rank[both]
    return {
        "name": a.name,
        "recall@20": asdict(paired(ours > 0, theirs > 0)),
        "ndcg@20": asdict(mean_difference(gains(ours, CUTOFF), gains(theirs, CUTOFF))),
    }


def told(row: dict[str, Any], metric: str = "recall@20") -> str:
    """In a word, how the reference does against a row of `compared`."""
    found = Difference(**row["against"][metric])
    return "better" if found.low > 0 else "worse" if found.high < 0 else "not told apart"
