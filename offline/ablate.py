"""Stage `ablate` (Tables 4 and 10, and controls): H with something taken from it, laid out as `reason` does.

What trains, evaluates or serves reads the one or the other and knows no difference. A recipe that takes nothing away
has no such stage.

    control = "shuffled"    each user has another user's chains, the same user's for every split: what is left of a lift
                            does not come from reasoning about the user
    control = "successors"  the steps are the texts of the K items that fit best by co-occurrence, counted as for the
                            `analyst`, the best one last, where a chain has its recommendation: what is left of a lift
                            can be had without writing chains. Where fewer are known, those that others buy most
                            come before them
    steps = "mean"          K = 1: the mean of the steps
    steps = "last"          K = 1: the last step
    steps = "whole"         K = 1: the embedding of the chain as one text (encoders cut texts at their own length)
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offline.arrays import new_array
from offline.cooccurrence import Neighbours
from offline.errors import StageError
from offline.prepare import SPLITS, Dataset, load_dataset
from offline.progress import track
from offline.ranking import at_once, first, mask
from offline.reason import load_reasoning, load_template, present
from offline.reason.engines import Encoder, Sentences
from offline.reason.vectors import Vectors
from offline.recipe import AblationRecipe, ReasonRecipe, Recipe
from offline.stage import Stage, read_rows, run_stage, write_json
from offline.tokenize import load_embeddings

VERSION = 1
USERS = 512  # at a time
SEED = 11  # of who gets whose reasoning


def ablate(work: Path, prepared: Stage, tokens: Stage, reasoned: Stage, recipe: Recipe) -> Stage:
    """The output of `reason` as the recipe's ablation leaves it: `reasoned` itself if nothing is taken away."""
    what = recipe.ablation
    if what.steps == "each" and what.control == "none":
        return reasoned
    settings: dict[str, Any] = {"steps": what.steps, "control": what.control}
    if what.control == "successors":
        settings["last"] = "best"  # which came first, before
        settings["rest"] = "popular"  # where fewer than K are known; it was whatever the data begin with
    if what.steps == "whole":
        settings |= {"encoder": recipe.reason.encoder, "precision": recipe.reason.precision}
    upstream = [prepared, reasoned, *([tokens] if what.control == "successors" else [])]
    return run_stage(
        work, "ablate", VERSION, settings, upstream, lambda folder: _build(folder, prepared, tokens, reasoned, recipe)
    )


def _build(folder: Path, prepared: Stage, tokens: Stage, reasoned: Stage, recipe: Recipe) -> None:
    dataset = load_dataset(prepared.folder)
    what, names = recipe.ablation, load_template(reasoned.folder)
    successors = _Successors(dataset, tokens, len(names)) if what.control == "successors" else None
    whole = _Whole(folder.parent / "reasoning", recipe.reason) if what.steps == "whole" else None
    source = _others(len(dataset.users)) if what.control == "shuffled" else np.arange(len(dataset.users))
    width = 0
    for split in SPLITS:
        reasoning = load_reasoning(reasoned.folder, split)
        rows = read_rows(reasoned.folder / f"{split}.jsonl")
        if what.control == "shuffled":
            everyone = list(rows)
            rows = ({**everyone[user], "steps": everyone[other]["steps"]} for user, other in enumerate(source))
        out: np.memmap[Any, Any] | None = None
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as lines:
            starts = range(0, len(source), USERS)
            for start in track(starts, f"ablate, {split}"):
                users = np.arange(start, min(start + USERS, len(source)))
                part = list(islice(rows, len(users)))
                texts: list[list[str]] = [row["steps"] for row in part]
                matrix = reasoning[source[users]].astype(np.float32)  # [B, K, D]
                if successors is not None:
                    matrix, texts = successors.of(users, split)
                absent = ~present(matrix)
                matrix, texts = _collapsed(matrix, texts, what, whole)
                # A chain that is not there stays so: the text of nothing has an embedding, too.
                matrix[absent] = 0.0
                texts = [[] if gone else steps for gone, steps in zip(absent, texts, strict=True)]
                width = matrix.shape[2]
                if out is None:
                    shape = (len(source), *matrix.shape[1:])
                    out = new_array(folder / f"{split}.npy", np.float16, shape)
                out[users] = matrix
                for row, steps in zip(part, texts, strict=True):
                    lines.write(json.dumps({**row, "steps": steps}, ensure_ascii=False) + "\n")
        assert out is not None
        out.flush()
    template = _named(names, what)
    about = {"of": reasoned.folder.name, **what.model_dump(include={"steps", "control"})}
    write_json(folder / "summary.json", {"ablation": about, "K": len(template), "D": width, "template": template})


def _collapsed(
    matrix: NDArray[np.float32], texts: list[list[str]], what: AblationRecipe, whole: _Whole | None
) -> tuple[NDArray[np.float32], list[list[str]]]:
    """H [B, K, D] and its texts as `steps` leaves them."""
    match what.steps:
        case "each":
            return matrix, texts
        case "mean":
            return matrix.mean(1, keepdims=True), [[" ".join(steps)] for steps in texts]
        case "last":
            return matrix[:, -1:], [steps[-1:] for steps in texts]
        case "whole":
            assert whole is not None
            chains = [" ".join(steps) for steps in texts]
            return whole.of(chains)[:, None], [[chain] for chain in chains]


def _named(names: list[str], what: AblationRecipe) -> list[str]:
    """The template of what is left."""
    if what.control == "successors":
        names = [f"Successor {place}" for place in range(len(names), 0, -1)]
    if what.steps == "each":
        return names
    return names[-1:] if what.steps == "last" else [" -> ".join(names)]


def _others(users: int) -> NDArray[np.int64]:
    """Whose reasoning each user gets, int64 [U]: everyone's goes to one other user."""
    if users < 2:
        raise StageError("ablation.control = 'shuffled' needs two users at least")
    order = np.random.default_rng(SEED).permutation(users)
    others = np.empty(users, np.int64)
    others[order] = np.roll(order, 1)
    return others


class _Whole:
    """Embeddings of chains as one text, kept where those of steps are: a run that was cut off goes on where it was."""

    def __init__(self, folder: Path, recipe: ReasonRecipe) -> None:
        self._sentences = Sentences(recipe.encoder, recipe.precision)
        self._folder = folder
        self._encoder: Encoder | None = None  # loaded if there is anything to encode

    def of(self, chains: list[str]) -> NDArray[np.float32]:
        """Of each chain, float32 [len(chains), D], to the precision of H."""
        with Vectors.open(self._folder, self._sentences.identity) as vectors:
            missing = vectors.missing(list(dict.fromkeys(chains)))
            if missing:
                self._encoder = self._encoder or self._sentences.open()
                vectors.put(missing, self._encoder.encode(missing).astype(np.float16))
            found = vectors.of(chains)
        assert found is not None
        return found.astype(np.float32)


class _Successors:
    """What other users bought after a user's items; the user's own training part is in none of the counts."""

    def __init__(self, dataset: Dataset, tokens: Stage, steps: int) -> None:
        training = dataset.trainings()
        self._neighbours = Neighbours.fit(training, dataset.num_items)
        self._vectors = load_embeddings(tokens.folder, dataset.num_items)  # [N, D]
        self._dataset, self._training, self._steps = dataset, training, steps

    def of(self, users: NDArray[np.int64], split: str) -> tuple[NDArray[np.float32], list[list[str]]]:
        """The K best for each user, the best one last, as vectors [B, K, D] and titles.

        Zeros and no titles for a user who has had so much of the catalogue that fewer are left.
        """
        matrix = np.zeros((len(users), self._steps, self._vectors.shape[1]), np.float32)
        titles: list[list[str]] = [[] for _ in users]
        together = at_once(self._dataset.num_items)
        for start in range(0, len(users), together):
            for row, best in enumerate(self._best(users[start : start + together], split), start):
                if best.all():
                    matrix[row] = self._vectors[best - 1]
                    titles[row] = [self._dataset.items[i - 1].title for i in best.tolist()]
        return matrix, titles

    def _best(self, users: NDArray[np.int64], split: str) -> NDArray[np.int64]:
        """The K best items [B, K], the best one last; 0 where fewer are left."""
        histories = [self._dataset.history(int(user), split) for user in users]
        own = [self._training[user] for user in users]
        scores = self._neighbours.score(histories, own)
        mask(scores, histories)
        for row in np.flatnonzero((scores > 0).sum(axis=1) < self._steps).tolist():
            # Not by number: the first numbers are the first user's purchases, the held-out ones among them.
            (sold,) = self._neighbours.sold([own[row]])
            scores[row] = np.where(scores[row] == 0, -1 / (1 + sold), scores[row])
        return first(scores, self._steps)[:, ::-1]
