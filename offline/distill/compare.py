"""Stage `compare` (Table 11): teacher and students as recommenders, without any backbone.

A chain's last step is text; the items whose own texts are nearest to it are what the chain recommends. The users are
none that a student has learnt from, the split is the training split (history up to t-3, target t-2), and nobody is told
the target, the teacher neither.

Output folder:

    said-WHO.jsonl  {"user", "text"}: what `teacher`, `undistilled` and `distilled` wrote
    results.json    Recall@20 and NDCG@20 of everybody, with a 95% interval of the recall; report.html shows it

An answer without a last step recommends nothing. `whole answer` asks with all that was written, format or not: what is
left between two writers then is not the format's. Three things stand beside them that are no language model: the text
of the latest purchase in the place of a chain, popularity and the co-occurrence kNN.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offline.chains.template import Template
from offline.cooccurrence import Neighbours
from offline.discover.estimate import wilson
from offline.distill.answers import Said, ask_all
from offline.distill.run import DISTILLED, UNDISTILLED, write
from offline.distill.students import about
from offline.distill.teach import question, sample, teacher
from offline.encoder import SentenceEncoder
from offline.errors import AnswerError, StageError
from offline.metrics import ndcg, ranks, recall
from offline.page import html, table
from offline.prepare import Dataset, dataset_name, load_dataset
from offline.ranking import first, mask
from offline.recipe import Recipe
from offline.stage import Stage, console, run_stage, write_json

VERSION = 1
K = 20


def compare(work: Path, prepared: Stage, students: Stage, recipe: Recipe) -> Stage:
    """Run the stage on what `prepare` and `distill` made; the template is the students'. Raises what they raise."""
    settings: dict[str, Any] = {
        "teacher": recipe.teacher.words(),
        "users": recipe.distill.compared,
        "encoder": recipe.reason.encoder,
        "precision": recipe.reason.precision,
    }
    return run_stage(
        work,
        "compare",
        VERSION,
        settings,
        [prepared, students],
        lambda folder: _Run(folder, prepared, students, recipe).go(),
    )


class _Run:
    def __init__(self, folder: Path, prepared: Stage, students: Stage, recipe: Recipe) -> None:
        self.folder, self.prepared, self.students = folder, prepared, students
        self.recipe = recipe
        self.dataset = load_dataset(prepared.folder)
        distill = recipe.distill
        self.users = sample(self.dataset, distill.users + distill.compared, distill.seed)[distill.users :]
        if not self.users:
            raise StageError(
                f"all {len(self.dataset.users)} users were drawn for distillation, nobody is left to compare on: "
                "lower distill.users"
            )

    def go(self) -> None:
        self.template = Template(about(self.students.folder).template)
        said = {"teacher": self._teacher()}
        for who in (UNDISTILLED, DISTILLED):
            path = self.folder / f"said-{who}.jsonl"
            said[who] = write(path, self.dataset, self.users, who, self.students.folder, self.template, self.recipe)
        retrieval = _Retrieval(self.dataset, self.users, self.recipe, self.folder / "items.npy")
        rows: list[dict[str, Any]] = []
        for name, texts in said.items():
            steps = [self._last_step(texts[user]) for user in self.users]
            valid = round(sum(map(bool, steps)) / len(steps), 4)
            rows.extend(retrieval.rows(name, "last step", steps, valid))
            rows.extend(retrieval.rows(name, "whole answer", [texts[user].text for user in self.users], valid))
        rows.extend(retrieval.controls())
        write_json(
            self.folder / "results.json",
            {"dataset": dataset_name(self.prepared.folder), "users": len(self.users), "results": rows},
        )
        words = (
            f"{len(self.users):,} users that no student has learnt from; training split; nobody knew the target. A "
            "chain's text is turned into items by nearest text embeddings."
        )
        parts = [
            f"<h1>{escape(dataset_name(self.prepared.folder))}: who recommends how well without a backbone</h1>",
            f"<p>{words}</p>",
            table(rows),
        ]
        (self.folder / "report.html").write_text(html("Chains as recommenders", parts), encoding="utf-8")
        (self.folder / "items.npy").unlink()
        for row in rows:
            if row["history"] == "masked" and row["query"] != "whole answer":
                console.print(f"  {row['who']}: recall@{K} {row[f'recall@{K}']:.4f}, ndcg@{K} {row[f'ndcg@{K}']:.4f}")

    def _teacher(self) -> dict[int, Said]:
        return ask_all(
            self.folder / "said-teacher.jsonl",
            self.dataset,
            self.users,
            lambda user: question(self.dataset, user, self.template, self.recipe, hindsight=False),
            partial(teacher, self.recipe, self.dataset, self.folder),
        )

    def _last_step(self, said: Said) -> str:
        try:
            return said.chain(self.template.steps).steps[-1]
        except AnswerError:
            return ""


class _Retrieval:
    """From texts to ranked items, for the users compared."""

    def __init__(self, dataset: Dataset, users: Sequence[int], recipe: Recipe, kept: Path) -> None:
        self._dataset, self._users = dataset, users
        self._encoder = SentenceEncoder(recipe.reason.encoder, recipe.reason.precision)
        self._texts = [item.text or item.title for item in dataset.items]
        if not kept.is_file():
            temporary = kept.with_suffix(".partial.npy")
            np.save(temporary, self._encoder.encode(self._texts))
            temporary.replace(kept)
        self._items: NDArray[np.float32] = np.load(kept)  # [N, D], item 1 first
        self._histories = [dataset.history(user, "train") for user in users]
        self._targets = np.array([dataset.target(user, "train") for user in users], np.int64)  # [U]

    def rows(self, who: str, query: str, texts: Sequence[str], valid: float | None) -> list[dict[str, Any]]:
        """Results with the history masked and not; an empty text finds nothing."""
        scores = np.full((len(texts), len(self._items) + 1), -np.inf, np.float32)
        asked = [place for place, text in enumerate(texts) if text]
        if asked:
            scores[asked, 1:] = self._encoder.encode([texts[place] for place in asked]) @ self._items.T
        return self._measured(who, query, scores, valid)

    def controls(self) -> list[dict[str, Any]]:
        """What is no language model."""
        latest = [self._texts[int(history[-1]) - 1] for history in self._histories]
        everybody = self._dataset.trainings()
        own = [self._dataset.training(user) for user in self._users]
        known = Neighbours.fit(everybody, self._dataset.num_items)
        popular = known.sold(own).astype(np.float32)
        near = known.score(self._histories, leave_out=own)
        near[near <= 0] = -np.inf
        return [
            *self.rows("latest purchase", "its text", latest, None),
            *self._measured("popularity", "counts", popular, None),
            *self._measured("co-occurrence kNN", "counts", near, None),
        ]

    def _measured(self, who: str, query: str, scores: NDArray[np.float32], valid: float | None) -> list[dict[str, Any]]:
        """Of scores [U, N+1]; what is at minus infinity is not recommended."""
        found: list[dict[str, Any]] = []
        for masked in (True, False):
            left = scores.copy()
            if masked:
                mask(left, self._histories)
            rank = ranks(first(left, K), self._targets)
            interval = wilson(int((rank > 0).sum()), len(rank))
            found.append(
                {
                    "who": who,
                    "query": query,
                    "history": "masked" if masked else "not masked",
                    "valid": "" if valid is None else valid,
                    f"recall@{K}": round(recall(rank, K), 5),
                    "low": round(interval.low, 5),
                    "high": round(interval.high, 5),
                    f"ndcg@{K}": round(ndcg(rank, K), 5),
                }
            )
        return found
