"""Stage `distill` (section 3.3.1, Algorithm 2 step 1): students that write the teacher's chains.

One student for each fold: it learns from the chains of all other folds' users, and writes for the users of its own. So
nobody's training H is written by weights that have seen a chain which was written in the knowledge of that user's
target. A further share of users is held out from every student, to measure on.

Output folder:

    students.json       what the students are (`offline.distill.students.about`)
    student-F/          of fold F: a peft adapter, or a whole model
    examples-F.jsonl    {"user", "tokens"}: whom student F has learnt from
    left-out.jsonl      {"user", "tokens"}: whose example is longer than `max_length`
    curve.jsonl         {"fold", "step", "epoch", "loss", ...} and {"fold", "step", "held_out_loss"}
    written-WHO.jsonl   {"user", "text"}: what `undistilled` and `distilled` wrote for held-out users
    summary.json        loss, perplexity and validity before and after; report.html shows it
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from offline.chains import rationale
from offline.chains.template import Template
from offline.distill.answers import Said, ask_all, validity, whole_rows
from offline.distill.page import write_page
from offline.distill.students import (
    Students,
    checkpoints,
    describe,
    fold_of,
    learns_from,
    open_student,
    student,
)
from offline.distill.teach import SETTINGS as TEACHING
from offline.distill.teach import load_chains, teach, view
from offline.errors import StageError, TrainingError
from offline.llm.base import Backend, Prompt, Sampling
from offline.prepare import Dataset, dataset_name, load_dataset
from offline.recipe import Recipe
from offline.stage import Stage, console, read_json, run_stage, write_json, write_rows

if TYPE_CHECKING:
    from offline.distill.examples import Example

VERSION = 1
FEWEST = 8  # examples that a student is made of
SHOWN = 3  # users whose chains the report shows
UNDISTILLED: Literal["undistilled"] = "undistilled"
DISTILLED: Literal["distilled"] = "distilled"
Writer = Literal["undistilled", "distilled"]


def distill(work: Path, prepared: Stage, template: Template, recipe: Recipe, upstream: Sequence[Stage]) -> Stage:
    """Run the stage on what `prepare` made; `upstream` is what the template comes from, if a stage made it.

    The teacher's chains are a stage of their own (`offline.distill.teach`): another student costs no other chains.
    Raises LLMError when the teacher or the student cannot be had, StageError when too few chains can be learnt from,
    TrainingError when the loss is not finite.
    """
    reads = [prepared, *(stage for stage in upstream if stage != prepared)]
    taught = teach(work, prepared, template, recipe, reads)
    settings: dict[str, Any] = {
        "template": list(template.steps),
        "students": recipe.distill.model_dump(exclude=(TEACHING - {"seed"}) | {"compared"}),
        "written_tokens": recipe.reason.max_tokens,
    }
    return run_stage(
        work,
        "distill",
        VERSION,
        settings,
        [*reads, taught],
        lambda folder: _Run(folder, prepared, taught, template, recipe).go(),
    )


def write(
    path: Path, dataset: Dataset, users: Sequence[int], name: Writer, folder: Path, template: Template, recipe: Recipe
) -> dict[int, Said]:
    """Training chains by the students in `folder`, each user's by that of his own fold; or by the undistilled model.

    Greedy, asked as students are taught, and not held to the format. `path` keeps them.
    """
    folds = recipe.distill.folds

    def asked(user: int) -> Prompt:
        sampling = Sampling(temperature=0.0, max_tokens=recipe.reason.max_tokens, seed=recipe.distill.seed)
        return rationale.ask(dataset, user, "train", template.steps, sampling, view(recipe))

    if name == UNDISTILLED:
        return ask_all(path, dataset, users, asked, partial(_writer, None, folder, recipe))
    said: dict[int, Said] = {}
    for fold in range(folds):
        own = [user for user in users if fold_of(dataset.users[user], folds) == fold]
        said |= ask_all(path, dataset, own, asked, partial(_writer, fold, folder, recipe))
    return {user: said[user] for user in users}


def _writer(fold: int | None, folder: Path, recipe: Recipe) -> AbstractContextManager[Backend]:
    path = None if fold is None else student(folder, fold)
    return open_student(recipe.distill.student, recipe.distill.method, path, recipe)


class _Run:
    def __init__(self, folder: Path, prepared: Stage, taught: Stage, template: Template, recipe: Recipe) -> None:
        self.folder, self.prepared, self.template, self.recipe = folder, prepared, template, recipe
        self.dataset = load_dataset(prepared.folder)
        self.taught: dict[str, Any] = read_json(taught.folder / "summary.json")
        self.chains = load_chains(taught.folder, self.dataset)
        self.folds = range(recipe.distill.folds)

    def go(self) -> None:
        from offline.distill.examples import examples  # noqa: PLC0415 - seconds to import
        from offline.llm.model import load_causal  # noqa: PLC0415

        distill = self.recipe.distill
        tokenizer = load_causal(distill.student, distill.precision)[1]
        found = examples(self.dataset, self.chains, self.template.steps, view(self.recipe), tokenizer)
        fitting = [example for example in found if example.tokens <= distill.max_length]
        self._record("left-out.jsonl", [example for example in found if example.tokens > distill.max_length])
        held = fitting[: max(1, round(distill.held_out * len(fitting)))]  # users were drawn in random order
        learns = [
            [e for e in fitting[len(held) :] if learns_from(fold, self.dataset.users[e.user], distill.folds)]
            for fold in self.folds
        ]
        self._enough(found, fitting, learns)
        trained = [self._tuned(fold, learns[fold], held) for fold in self.folds]
        self._finish(trained, held, len(found) - len(fitting))

    def _enough(self, found: list[Example], fitting: list[Example], learns: list[list[Example]]) -> None:
        fewest = min(map(len, learns))
        if fewest >= FEWEST:
            return
        reasons = ", ".join(f"{count} x {reason}" for reason, count in self.taught["rejected"].items())
        shortest = min((example.tokens for example in found), default=0)
        long = f"; {len(found) - len(fitting)} are longer than distill.max_length, the shortest has {shortest} tokens"
        raise StageError(
            f"{fewest} chains are left for a student to learn from, it needs {FEWEST}: of {self.taught['asked']} that "
            f"the teacher was asked for {self.taught['kept']} can be learnt from"
            + (f" (not: {reasons})" if reasons else "")
            + (long if len(fitting) < len(found) else "")
            + ": raise distill.users, or take a better teacher"
        )

    def _record(self, name: str, found: list[Example]) -> None:
        write_rows(self.folder / name, ({"user": self.dataset.users[e.user], "tokens": e.tokens} for e in found))

    def _tuned(self, fold: int, learns: list[Example], held: list[Example]) -> dict[str, Any]:
        """The student of a fold, trained unless it is there: how that went."""
        from offline.distill.tune import tune  # noqa: PLC0415 - seconds to import

        self._record(f"examples-{fold}.jsonl", learns)
        path, log = student(self.folder, fold), self.folder / f"tuned-{fold}.json"
        if not (path.is_dir() and log.is_file()):
            shutil.rmtree(path, ignore_errors=True)  # finished, and killed before its log was
            write_json(log, asdict(tune(path, path.name, learns, held, self.recipe.distill)))
        shutil.rmtree(checkpoints(path), ignore_errors=True)
        return dict(read_json(log))

    def _finish(self, trained: list[dict[str, Any]], held: list[Example], left_out: int) -> None:
        distill, steps = self.recipe.distill, self.template.steps
        losses = self._losses(held)
        written = {name: self._written(name, held) for name in (UNDISTILLED, DISTILLED)}
        after = sum(losses[1:]) / len(losses[1:])
        summary: dict[str, Any] = {
            "dataset": dataset_name(self.prepared.folder),
            "teacher": self.taught["teacher"],
            "student": distill.student,
            "method": distill.method,
            "template": list(steps),
            "hindsight": distill.hindsight,
            "chains": {key: self.taught[key] for key in ("asked", "kept", "rejected")} | {"too_long": left_out},
            "held_out": len(held),
            "before": {"loss": losses[0], "perplexity": math.exp(losses[0]), **written[UNDISTILLED]},
            "after": {"loss": after, "perplexity": math.exp(after), **written[DISTILLED]},
            "students": [
                {"fold": fold, "held_out_loss": losses[fold + 1]}
                | {key: row[key] for key in ("examples", "tokens", "steps", "seconds")}
                for fold, row in enumerate(trained)
            ],
        }
        curve = [{"fold": fold, **row} for fold in self.folds for row in trained[fold]["curve"]]
        write_rows(self.folder / "curve.jsonl", curve)
        write_json(self.folder / "summary.json", summary)
        write_page(self.folder, summary, curve, self._shown(held))
        describe(
            self.folder,
            Students(distill.student, distill.method, distill.folds, steps, view(self.recipe), distill.hindsight),
        )
        for path in (*self.folder.glob("tuned-*.json"), self.folder / "losses.json"):
            path.unlink()
        before, after = summary["before"], summary["after"]
        console.print(
            f"  held-out perplexity {before['perplexity']:.1f} -> {after['perplexity']:.2f}, "
            f"valid chains {before['valid']:.0%} -> {after['valid']:.0%}"
        )

    def _losses(self, held: list[Example]) -> list[float]:
        """Of the undistilled model and of each student on the held-out chains, measured once."""
        from offline.distill.measure import held_out_losses  # noqa: PLC0415 - seconds to import

        path = self.folder / "losses.json"
        if not path.is_file():
            distill = self.recipe.distill
            models = [None, *(student(self.folder, fold) for fold in self.folds)]
            losses = held_out_losses(distill.student, models, distill.method, distill.precision, held, distill.batch)
            for model, loss in zip(models, losses, strict=True):
                if not math.isfinite(loss):
                    raise TrainingError(
                        f"{model or distill.student}: the loss on held-out chains is {loss}: lower "
                        "distill.learning_rate, or take distill.precision = 'float32'"
                    )
            write_json(path, {"losses": losses})
        return list(read_json(path)["losses"])

    def _written(self, name: Writer, held: list[Example]) -> dict[str, Any]:
        """What the model writes for held-out users, each by the student of the user's own fold; greedy, not held."""
        users = [example.user for example in held[: self.recipe.distill.generated]]
        said = write(
            self.folder / f"written-{name}.jsonl", self.dataset, users, name, self.folder, self.template, self.recipe
        )
        return validity(list(said.values()), self.template.steps)

    def _shown(self, held: list[Example]) -> list[dict[str, str]]:
        """A few held-out users' chains, by everybody, for the report."""
        taught = {chain.user: chain.chain for chain in self.chains}
        texts = {
            name: {row["user"]: row["text"] for row in whole_rows(self.folder / f"written-{name}.jsonl")}
            for name in (UNDISTILLED, DISTILLED)
        }
        return [
            {
                "user": user,
                "teacher": rationale.write(taught[example.user], self.template.steps),
                **{name: found.get(user, "") for name, found in texts.items()},
            }
            for example in held[:SHOWN]
            if (user := self.dataset.users[example.user])
        ]
