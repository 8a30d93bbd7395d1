"""Stage `discover` (section 3.2, Algorithm 1): Generate-Validate-Mine, and what the template is worth.

1. **Generate.** Users of the first panel are asked about, several answers each; near-duplicate paths are pruned.
2. **Validate.** Every answer's recommendations are mapped to the catalogue and looked through for the target.
3. **Mine.** The kept paths are clustered. The most promising ones are applied to the users of the second panel, all to
   the same users; the cluster of the highest quality is abstracted into one template.
4. **Judge.** The template, the manual ones, one from the best single chains and any from elsewhere are applied to the
   users of the third panel.

Output folder:

    template.json   `steps`, which `offline.chains.template.Template.load` reads, and the evidence for them
    top-k.json      the same of the template from the best single chains: Table 2 trains a model on each
    evidence.json   every number that the report shows
    summary.json    the short of it
    report.html     for people
    chains.jsonl    a row for each answer of step 1: path, whether kept, cluster, predicted items, rank of the target
    applied.jsonl   a row for each answer of steps 3 and 4: which path, user, rank of the target
    rejected.jsonl  a row for each answer that could not be read, and each prompt without one, with the reason
    answers/        what the backend wrote, as it came

Answers are on disk as soon as they come: a run that was cut off asks only for those that are missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.progress import Progress

from offline.chains import explore, mine
from offline.chains.history import line
from offline.chains.template import ARROW, MANUAL, Template
from offline.discover import evidence, mining
from offline.discover.catalogue import DEPTH, Catalogue
from offline.discover.evidence import CUTOFF, Abstraction, Applied
from offline.discover.journal import Journal, Question, Reply
from offline.discover.mining import Pool
from offline.discover.output import applied_rows, chain_rows, rejected_rows, write_found
from offline.discover.panels import Panels, Shopper, draw, shopper
from offline.discover.patterns import Patterns, cluster
from offline.discover.references import untrained
from offline.discover.validate import QUOTED, Chain, Reading, read
from offline.encoder import SentenceEncoder
from offline.errors import AnswerError, StageError
from offline.llm.base import Abstract, Backend, Explore, Sampling, Usage
from offline.llm.open import ANSWERS, open_backend
from offline.prepare import Dataset, dataset_name, load_dataset
from offline.progress import progress
from offline.recipe import Recipe
from offline.stage import Stage, console, read_json, run_stage, write_json, write_rows

VERSION = 2
EARLY = 50  # answers after which a backend that never kept to the format is asked no further
TRIES = 3  # answers to the Mine prompt, of which the first that can be read is taken
EXAMPLES = 3  # chains that the report shows
MINED, SINGLE = "mined", "best single chains"
_RETRIEVED = "retrieved"  # in the work folder: another recipe, with other clusters say, encodes nothing twice either


def discover(work: Path, prepared: Stage, tokens: Stage, recipe: Recipe, also: Sequence[Path] = ()) -> Stage:
    """Run the stage on the outputs of `prepare` and `tokenize`; `also` are template.json files to compare with.

    Raises LLMError when the backend cannot be asked any more, with what it answered kept for the next run; StageError
    when its answers are of no use; RecipeError when a file of `also` holds no template.
    """
    others = _others(also)
    settings = {
        "discover": recipe.discover.model_dump(),
        "teacher": recipe.teacher.words(),
        "also": {name: list(template.steps) for name, template in others.items()},
    }

    def build(folder: Path) -> None:
        with progress() as bars:
            found = _Discovery(work, folder, prepared, tokens, recipe, others, bars).go()
        _say(found)

    return run_stage(work, "discover", VERSION, settings, [prepared, tokens], build)


class _Discovery:
    """One run of the stage."""

    def __init__(
        self,
        work: Path,
        folder: Path,
        prepared: Stage,
        tokens: Stage,
        recipe: Recipe,
        others: dict[str, Template],
        bars: Progress,
    ) -> None:
        self._folder = folder
        self._recipe = recipe
        self._others = others
        self._cache = work / ANSWERS
        self._bars = bars
        self._name = dataset_name(prepared.folder)
        self._dataset: Dataset = load_dataset(prepared.folder)
        self._shopper: Callable[[int], Shopper] = cache(
            lambda user: shopper(self._dataset, user, recipe.discover.items)
        )
        vectors: NDArray[np.float32] = np.load(tokens.folder / "embeddings.npy")
        (work / _RETRIEVED).mkdir(exist_ok=True)
        memory = work / _RETRIEVED / f"{tokens.fingerprint}-{DEPTH}.bin"
        self._catalogue = Catalogue(vectors, self._encode, memory)
        self._readings: dict[str, Reading] = {}
        self._earlier = _sessions(folder)
        (folder / "answers").mkdir(exist_ok=True)

    @cached_property
    def _encoder(self) -> SentenceEncoder:
        return SentenceEncoder(self._recipe.tokenize.encoder, self._recipe.tokenize.precision)

    def _encode(self, texts: list[str]) -> NDArray[np.float32]:
        return self._encoder.encode(texts)

    def go(self) -> dict[str, Any]:
        """All four steps. Returns the evidence."""
        asked = self._recipe.discover
        panels = draw(len(self._dataset.users), asked.users, asked.path_users, asked.path_users, asked.seed)
        if len(panels.explore) < asked.users or len(panels.judge) < asked.path_users:
            console.print(
                f"  [yellow]{len(self._dataset.users):,} users are fewer than discover asks for[/]: panels of "
                f"{len(panels.explore):,}, {len(panels.choose):,} and {len(panels.judge):,}"
            )
        with self._backend() as backend:
            reading = self._generate(backend, panels)
            paths = mining.pool(reading.chains, self._encode, asked.similarity)
            patterns = cluster(paths.vectors, asked.clusters, asked.seed)
            tried = mining.candidates(paths, patterns, asked.shrinkage, asked.candidates)
            named = {ARROW.join(paths.kept[row].steps): paths.kept[row].steps for row in tried}
            chosen = self._apply(backend, "candidates", panels.choose, named)
            counts = [(row, int(one.answered.sum()), one.hits) for row, one in zip(tried, chosen, strict=True)]
            found, mean = mining.qualities(paths, patterns, asked.shrinkage, counts)
            winner = mining.best(found)
            mined = self._abstract(
                backend,
                paths,
                mining.exemplars(paths, patterns, winner, asked.exemplars),
                patterns.k,
                found[winner].quality.value,
            )
            top = mining.best_chains(paths, asked.exemplars)
            single = self._abstract(backend, paths, top, 1, sum(paths.kept[row].rank > 0 for row in top) / len(top))
            templates = {MINED: mined.steps, SINGLE: single.steps} | {
                name: template.steps for name, template in (MANUAL | self._others).items()
            }
            judged = self._apply(backend, "judge", panels.judge, templates)
            name = backend.name
        typical = [mining.exemplars(paths, patterns, one, 1)[0] for one in range(patterns.k)]
        leading = max(chosen, key=lambda one: one.hits / max(int(one.answered.sum()), 1)).name
        body: dict[str, Any] = {
            "dataset": self._name,
            "backend": name,
            "teacher": self._recipe.teacher.backend,
            "encoder": self._recipe.tokenize.encoder,
            "panels": {"explore": len(panels.explore), "choose": len(panels.choose), "judge": len(panels.judge)},
            "items": self._dataset.num_items,
            "generate": evidence.generated(reading, len(panels.explore), asked.chains, paths, asked.similarity),
            "rejected": evidence.rejected(self._readings),
            "mine": evidence.clustered(paths, patterns, found, mean, asked.shrinkage, typical),
            "candidates": [
                row | {"cluster": int(patterns.labels[place])}
                for place, row in zip(tried, evidence.compared(chosen, leading), strict=True)
            ],
            "mined": mined.to_json(),
            "single": single.to_json(),
            "templates": evidence.compared(judged, MINED),
            "references": evidence.compared(untrained(self._dataset, panels.judge), None),
            "examples": self._examples(reading, panels, paths, patterns, winner),
            "cost": asdict(sum(_sessions(self._folder), Usage())),
        }
        users, items = self._dataset.users, self._dataset.items
        write_rows(self._folder / "chains.jsonl", chain_rows(reading.chains, users, items, paths, patterns))
        panel_rows = {"candidates": (panels.choose, chosen), "judge": (panels.judge, judged)}
        write_rows(self._folder / "applied.jsonl", applied_rows(panel_rows, users))
        write_rows(self._folder / "rejected.jsonl", rejected_rows(self._readings, users))
        write_found(self._folder, body)
        (self._folder / "usage.json").unlink(missing_ok=True)
        return body

    # ---- asking

    @contextmanager
    def _backend(self) -> Iterator[Backend]:
        """The backend, open; what it used is noted, also when it dies."""
        with open_backend(self._recipe.teacher, self._dataset, self._cache) as backend:
            try:
                yield backend
            finally:
                self._note(backend)

    def _note(self, backend: Backend) -> None:
        """What was used so far, on disk with every answer: this process may be killed before the next one."""
        write_json(self._folder / "usage.json", [asdict(one) for one in (*self._earlier, backend.usage)])

    def _question(self, user: int, n: int, path: tuple[str, ...] | None = None) -> Question:
        asked = self._recipe.discover
        who = self._shopper(user)
        sampling = Sampling(n, asked.temperature, asked.top_p, asked.max_tokens, asked.seed)
        items = [self._dataset.items[item - 1] for item in who.history]
        return Question(
            user, explore.prompt(Explore(who.history, who.own, path), items, sampling, text_chars=asked.text_chars)
        )

    def _ask(
        self, backend: Backend, phase: str, questions: Sequence[Question], after: Callable[[Question, Reply], None]
    ) -> Reading:
        journal = Journal(self._folder / "answers" / f"{phase}.jsonl")
        missing = len(journal.missing(questions))
        task = self._bars.add_task(f"{phase}: asking", total=len(questions), completed=len(questions) - missing)

        def answered(question: Question, reply: Reply) -> None:
            self._note(backend)
            self._bars.advance(task)
            after(question, reply)

        journal.ask(questions, backend, answered)
        task = self._bars.add_task(f"{phase}: matching", total=len(questions))
        reading = read(questions, journal, self._catalogue, self._shopper, lambda done: self._bars.advance(task, done))
        self._readings[phase] = reading
        return reading

    def _generate(self, backend: Backend, panels: Panels) -> Reading:
        questions = [self._question(user, self._recipe.discover.chains) for user in panels.explore]
        sense = _Sense(self._folder)
        for _, reply in Journal(self._folder / "answers" / "generate.jsonl").replies(questions):
            sense.look(reply)
        reading = self._ask(backend, "generate", questions, lambda _, reply: sense.look(reply))
        if not sense.answers:
            why = Counter(row.reason for row in reading.rejected).most_common(3)
            raise StageError(
                f"the backend answered none of {len(questions):,} prompts: {'; '.join(reason for reason, _ in why)}"
            )
        if not reading.chains:
            raise sense.none()
        if len(reading.chains) < sense.answers / 2:
            console.print(
                f"  [yellow]only {len(reading.chains):,} of {sense.answers:,} answers can be read[/]: rejected.jsonl "
                "has the others"
            )
        return reading

    def _apply(
        self, backend: Backend, phase: str, users: Sequence[int], paths: dict[str, tuple[str, ...]]
    ) -> list[Applied]:
        """Every path to every user, once."""
        questions = [self._question(user, 1, steps) for steps in paths.values() for user in users]
        reading = self._ask(backend, phase, questions, lambda *_: None)
        shape = len(paths), len(users)
        rank, masked = (reading.ranks(len(questions), masked=one).reshape(shape) for one in (False, True))
        unreadable = Counter(row.question // len(users) for row in reading.rejected if row.answer is not None)
        other = Counter(chain.question // len(users) for chain in reading.chains if explore.OTHER in chain.repairs)
        return [
            Applied(name, steps, rank[place], masked[place], unreadable[place], other[place])
            for place, (name, steps) in enumerate(paths.items())
        ]

    def _abstract(
        self, backend: Backend, paths: Pool, rows: Sequence[int], clusters: int, recall: float
    ) -> Abstraction:
        """One template from exemplars, by the backend; the first exemplar where it gives none that can be read."""
        asked = self._recipe.discover
        chosen = tuple(paths.kept[row].steps for row in rows)
        sampling = Sampling(TRIES, asked.temperature, asked.top_p, asked.max_tokens, asked.seed)
        question = Question(None, mine.prompt(Abstract(chosen, 1, clusters, recall), sampling))
        journal = Journal(self._folder / "answers" / "mine.jsonl")
        journal.ask([question], backend, lambda *_: self._note(backend))
        reasons: list[str] = []
        for _, reply in journal.replies([question]):
            if not reply.texts:
                raise StageError(
                    f"the backend gave no answer to the prompt that mines the template ({reply.error}): run again, all "
                    "other answers are kept"
                )
            for text in reply.texts:
                try:
                    parsed = mine.parse(text)
                except AnswerError as error:
                    reasons.append(str(error))
                else:
                    return Abstraction(
                        parsed.steps, chosen, by_backend=True, reasons=tuple(reasons), notes=parsed.notes
                    )
        return Abstraction(chosen[0], chosen, by_backend=False, reasons=tuple(reasons), notes={})

    def _examples(
        self, reading: Reading, panels: Panels, paths: Pool, patterns: Patterns, winner: int
    ) -> list[dict[str, Any]]:
        """Chains of the winning pattern: hits as far as there are any, but for the last one."""
        members = [chain for place, chain in enumerate(reading.chains) if patterns.labels[paths.owner[place]] == winner]
        hits = _one_each(chain for chain in members if chain.rank)[: EXAMPLES - 1]
        chosen = _one_each([*hits, *(chain for chain in members if not chain.rank)])[:EXAMPLES]
        journal = Journal(self._folder / "answers" / "generate.jsonl")
        found: list[dict[str, Any]] = []
        for chain in chosen:
            question = self._question(panels.explore[chain.question], self._recipe.discover.chains)
            for _, reply in journal.replies([question]):
                told = explore.parse(reply.texts[chain.answer])
                who = self._shopper(chain.user)
                nearest = self._catalogue.nearest(told.recommendations)[:, 0].tolist()
                found.append(
                    {
                        "history": [self._title(item) for item in who.history],
                        "path": list(told.path),
                        "reason": told.reason,
                        "recommendations": [
                            {"text": text, "item": self._title(item), "hit": item == who.target}
                            for text, item in zip(told.recommendations, nearest, strict=True)
                        ],
                        "target": self._title(who.target),
                        "rank": chain.rank,
                    }
                )
        return found

    def _title(self, item: int) -> str:
        return line(self._dataset.items[item - 1], text_chars=0)


class _Sense:
    """Whether the backend keeps to the format at all; one that never does is not paid to the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._readable = False
        self._refused: list[dict[str, Any]] = []
        self.answers = 0

    def look(self, reply: Reply) -> None:
        """Look at one more reply. Raises StageError after EARLY answers of which none can be read."""
        for text in reply.texts:
            self.answers += 1
            if self._readable:
                continue
            try:
                explore.parse(text)
            except AnswerError as error:
                self._refused.append({"phase": "generate", "reason": str(error), "text": text[:QUOTED]})
            else:
                self._readable = True
        if not self._readable and self.answers >= EARLY:
            raise self.none()

    def none(self) -> StageError:
        """What to say when no answer can be read."""
        place = self._folder / "rejected.jsonl"
        write_rows(place, self._refused)
        reasons = Counter(row["reason"] for row in self._refused).most_common(3)
        why = ", ".join(f"{reason} (x{count:,})" for reason, count in reasons)
        return StageError(
            f"none of the backend's {self.answers:,} answers can be read: {why}. They are in {place}. "
            "Take a teacher.model that keeps to the format, hold it to it with teacher.structured, or raise "
            "discover.max_tokens"
        )


def _one_each(chains: Iterable[Chain]) -> list[Chain]:
    """The first chain of each user."""
    first: dict[int, Chain] = {}
    for chain in chains:
        first.setdefault(chain.user, chain)
    return list(first.values())


def _others(also: Sequence[Path]) -> dict[str, Template]:
    """Templates from elsewhere, by where they are from."""
    found: dict[str, Template] = {}
    for path in also:
        template = Template.load(path)
        body: dict[str, Any] = read_json(path)
        name = f"from {body.get('dataset') or path.stem}"
        same = sum(other == name or other.startswith(f"{name} (") for other in found)
        found[f"{name} ({same + 1})" if same else name] = template
    return found


def _sessions(folder: Path) -> list[Usage]:
    path = folder / "usage.json"
    return [Usage(**row) for row in read_json(path)] if path.exists() else []


def _say(body: dict[str, Any]) -> None:
    found = body["generate"]
    console.print(
        f"  {found['readable']:,} of {found['answers']:,} answers readable, {found['kept']:,} paths kept, "
        f"{found['pruned']:,} pruned, {body['mine']['k']} clusters"
    )
    console.print(f"  [bold]{escape(ARROW.join(body['mined']['steps']))}[/]", soft_wrap=True)
    for row in (*body["templates"], *body["references"]):
        recall = row["recall@20"]
        console.print(
            f"  {escape(row['name']):<20} Recall@{CUTOFF} {recall['value']:.4f} ({recall['low']:.4f} to "
            f"{recall['high']:.4f}), {row['hits']:,} of {row['users']:,} users",
            soft_wrap=True,
        )
