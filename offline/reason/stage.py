"""The stage itself: what is missing is written, then encoded, then everybody's H is put together.

Chains and vectors are kept by what they were made from (`offline.reason.kept`), in `<work>/reasoning/`: a chain by its
writer, template and prompt, a vector by its encoder and text. So a run that was cut off and a run on the data of the
next day are the same thing: what is there is not made again. Chains by statistics hold for one data set only and are
kept in the unfinished folder, for as long as the run takes.

What is missing is listed first, on disk, then done chunk by chunk by an engine: memory holds a few chunks, however
many users there are, and every engine is handed the same chunks.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.progress import Progress

from offline.arrays import new_array
from offline.chains.template import Template
from offline.errors import StageError
from offline.llm.base import Usage
from offline.prepare import SPLITS, load_dataset
from offline.progress import progress
from offline.reason.chains import Asking, Chain, Keys
from offline.reason.chunks import Chunks
from offline.reason.engines import Ask, Engine, Job, Local, Sentences
from offline.reason.kept import Kept, remove
from offline.reason.vectors import Vectors
from offline.reason.writers import writer
from offline.recipe import Recipe
from offline.stage import Stage, console, read_json, run_stage, write_json

_OnDisk = np.memmap[tuple[int, int, int], np.dtype[np.float16]]

VERSION = 2
USERS = 512  # users looked at together
TEXTS = 4096  # texts encoded between two savings; about ten seconds
TRIAL = 50  # chains after which a writer that none of them is of is not asked for more
FEW = 0.01  # share of users without a chain that is worth no word


def reason(
    work: Path,
    prepared: Stage,
    recipe: Recipe,
    template: Template,
    *,
    distilled: Stage | None = None,
    engine: Engine | None = None,
) -> Stage:
    """Run the stage on the output of `prepare`; `distilled` holds the students, if they are to write.

    Which engine does the work is no part of the result. Raises RecipeError if the parts do not fit each other, LLMError
    if the writer can be asked no more (what it wrote is kept), StageError if nothing that it writes is a chain.
    """
    folder = Path(recipe.reason.students) if recipe.reason.students else distilled.folder if distilled else None
    chosen = writer(work, recipe, template.steps, folder)
    asking = Asking(template.steps, recipe.reason.max_tokens)
    encoder = Sentences(recipe.reason.encoder, recipe.reason.precision)
    settings = {
        "writer": chosen.identity,
        "view": None if chosen.view is None else asdict(chosen.view),
        "template": template.steps,
        "max_tokens": None if chosen.view is None else asking.max_tokens,
        "encoder": encoder.identity,
    }
    upstream = [prepared, distilled] if distilled is not None else [prepared]

    def run(partial: Path) -> None:
        job = Job(prepared.folder, partial / "chunks", chosen, asking, encoder)
        build(partial, work / "reasoning", job, engine or Local())

    return run_stage(work, "reason", VERSION, settings, upstream, run)


def build(folder: Path, kept: Path, job: Job, engine: Engine) -> None:
    """Do a job: its output in `folder`, and what can be used again in `kept`."""
    with ExitStack() as stack:
        bars = stack.enter_context(progress())
        shared = kept if job.writer.view is not None else folder
        chains = stack.enter_context(Kept(shared / "chains.sqlite"))
        vectors = stack.enter_context(Vectors.open(kept, job.encoder.identity))
        _Run(folder, job, engine, chains, vectors, bars).go()
    shutil.rmtree(folder / "chunks")
    remove(folder / "chains.sqlite")
    (folder / "spent.json").unlink()


class _Run:
    def __init__(self, folder: Path, job: Job, engine: Engine, chains: Kept, vectors: Vectors, bars: Progress) -> None:
        self.folder, self.job, self.engine = folder, job, engine
        self.chains, self.vectors, self.bars = chains, vectors, bars
        self.dataset = load_dataset(job.prepared)
        self.keys = Keys(self.dataset, job.writer, job.asking)
        self.asks, self.texts = Chunks(folder / "chunks" / "write"), Chunks(folder / "chunks" / "encode")
        self.spent = _Spent.read(folder / "spent.json")

    def go(self) -> None:
        self._list_chains()
        self._write()
        self.spent.on("write")
        self._list_texts()
        self._encode()
        self.spent.on("encode")
        absent, width = self._assemble()
        self.spent.on("assemble")
        self._summarize(absent, width)

    def _list_chains(self) -> None:
        """Cut what nobody has written yet into chunks, each prompt once."""
        if self.asks.counts is not None and self._goes_on():
            return
        found: Counter[str] = Counter(reused=0, shared=0, asked=0)

        def rows(seen: Kept) -> Iterator[tuple[int, tuple[int, str, str]]]:
            for split, users in self._parts("looking for chains"):
                keys = [self.keys.of(user, split) for user in users]
                held = self.chains.get(keys)
                # No answer came when these were asked for: another day, another try.
                retried = [k for k, v in zip(keys, held, strict=True) if v is not None and Chain.decode(v).again]
                self.chains.drop(retried)
                missing = [
                    (user, key)
                    for user, key, value in zip(users, keys, held, strict=True)
                    if value is None or Chain.decode(value).again
                ]
                fresh = seen.new([key for _, key in missing])
                found.update(reused=len(keys) - len(missing), shared=len(missing) - len(fresh), asked=len(fresh))
                for place in fresh:
                    user, key = missing[place]
                    yield self.job.writer.fold(self.dataset.users[user]), (user, split, key.hex())

        with self._seen() as seen:
            self.asks.cut(rows(seen), self.job.writer.chunk, first=TRIAL)
        self.asks.finish(dict(found))

    def _goes_on(self) -> bool:
        """Of a run that was cut off: what got no answer is asked again, and texts listed anew.

        False, with all lists removed, if keys of chains were others then: what was written under those would not be
        found at the end, after everybody else had been asked.
        """
        for name in self.asks.names():
            rows = self.asks.read(name).rows
            if any(self.keys.of(user, split).hex() != key for user, split, key in rows):
                shutil.rmtree(self.folder / "chunks")
                return False
            keys = [bytes.fromhex(key) for _, _, key in rows]
            held = self.chains.get(keys)
            silent = [k for k, v in zip(keys, held, strict=True) if v is not None and Chain.decode(v).again]
            if silent:
                self.chains.drop(silent)
                shutil.rmtree(self.texts.folder, ignore_errors=True)
        return True

    def _write(self) -> None:
        counts = self.asks.counts
        assert counts is not None
        task = self.bars.add_task("chains", total=counts["asked"])
        good, bad = 0, 0

        def left() -> Iterator[Ask]:
            for name in self.asks.names():
                keys = [bytes.fromhex(key) for _, _, key in self.asks.read(name).rows]
                places = [place for place, value in enumerate(self.chains.get(keys)) if value is None]
                self.bars.advance(task, len(keys) - len(places))
                if places:
                    yield Ask(name, tuple(places) if len(places) < len(keys) else None)

        for written in self.engine.write(self._job(self.asks), self.dataset, left()):
            self.chains.put((key, chain.encode()) for key, chain in written.chains)
            self.spent.on("write", written.usage)
            self.bars.advance(task, len(written.chains))
            faults = [chain.fault for _, chain in written.chains if chain.fault is not None]
            good, bad = good + len(written.chains) - len(faults), bad + len(faults)
            if bad >= TRIAL and not good:
                # What is left may be what others before it failed on, too: look whether this writer ever wrote a chain.
                good = self._readable()
                if not good:
                    raise StageError(self._nothing(bad, faults[-1]))

    def _readable(self) -> int:
        """1 if a chain of anybody here is kept, from whichever run; else 0."""
        for split, users in self._parts("looking for a chain"):
            held = self.chains.get([self.keys.of(user, split) for user in users])
            if any(body is not None and Chain.decode(body).fault is None for body in held):
                return 1
        return 0

    def _list_texts(self) -> None:
        """Cut the texts that nobody has encoded yet into chunks, each text once."""
        if self.texts.counts is not None:
            for split, users in self._parts("looking for chains"):
                self._chains(split, users)  # one that is gone is missed now, not after hours of encoding
            return
        found: Counter[str] = Counter(unique=0, encoded=0)

        def rows(seen: Kept) -> Iterator[tuple[int, str]]:
            for split, users in self._parts("looking for texts"):
                texts = [text for chain in self._chains(split, users) for text in chain.steps]
                fresh = [texts[place] for place in seen.new([self.vectors.key(text) for text in texts])]
                missing = self.vectors.missing(fresh)
                found.update(unique=len(fresh), encoded=len(missing))
                for text in missing:
                    yield 0, text

        with self._seen() as seen:
            self.texts.cut(rows(seen), TEXTS)
        if not found["unique"]:
            fault = next(f for split, users in self._parts("") for c in self._chains(split, users) if (f := c.fault))
            raise StageError(self._nothing(len(self.dataset.users) * len(SPLITS), fault))
        self.texts.finish(dict(found))

    def _encode(self) -> None:
        counts = self.texts.counts
        assert counts is not None
        task = self.bars.add_task("encoding", total=counts["encoded"])

        def left() -> Iterator[str]:
            for name in self.texts.names():
                texts = self.texts.read(name).rows
                if self.vectors.missing(texts):
                    yield name
                else:
                    self.bars.advance(task, len(texts))

        for name, encoded in self.engine.encode(self._job(self.texts), left()):
            texts = self.texts.read(name).rows
            self.vectors.put(texts, encoded)
            self.spent.on("encode")
            self.bars.advance(task, len(texts))

    def _assemble(self) -> tuple[dict[str, int], int]:
        """Write every split's texts and H; returns how many users have none, by split, and D."""
        absent: dict[str, int] = dict.fromkeys(SPLITS, 0)
        width, K = 0, len(self.job.asking.template)
        with ExitStack() as files:
            failures = files.enter_context((self.folder / "failures.jsonl").open("w", encoding="utf-8"))
            out = {s: files.enter_context((self.folder / f"{s}.jsonl").open("w", encoding="utf-8")) for s in SPLITS}
            H: dict[str, _OnDisk] = {}
            for split, users in self._parts("H"):
                chains = self._chains(split, users)
                rows = [row for row, chain in enumerate(chains) if chain.fault is None]
                for user, chain in zip(users, chains, strict=True):
                    name = self.dataset.users[user]
                    length = len(self.dataset.history(user, split))
                    row = {"user": name, "history_length": length, "steps": chain.steps}
                    out[split].write(json.dumps(row, ensure_ascii=False) + "\n")
                    if chain.fault is not None:
                        failures.write(
                            json.dumps({"user": name, "split": split, "fault": chain.fault}, ensure_ascii=False) + "\n"
                        )
                absent[split] += len(users) - len(rows)
                if not rows:
                    continue
                block = self._vectors([text for row in rows for text in chains[row].steps])
                width = block.shape[1]
                if split not in H:
                    H.update({split: self._matrix(split, K, width)})
                H[split][users.start + np.array(rows)] = block.reshape(len(rows), K, width)
            for split in SPLITS:
                if split not in H:  # nobody has a chain of this split
                    H[split] = self._matrix(split, K, width)
                H[split].flush()
        return absent, width

    def _summarize(self, absent: dict[str, int], width: int) -> None:
        asked, texts, users = self.asks.counts, self.texts.counts, len(self.dataset.users)
        assert asked is not None
        assert texts is not None
        chains = users * len(SPLITS)
        share = sum(absent.values()) / chains
        if share > FEW:
            file = escape(str(self.folder.with_suffix("") / "failures.jsonl"))
            console.print(
                f"  [yellow]{share:.1%} of the chains are absent[/]: their users are ranked without reasoning; why, "
                f"is in {file}",
                soft_wrap=True,
            )
        seconds = self.spent.seconds
        write_json(
            self.folder / "summary.json",
            {
                "backend": self.job.writer.name,
                "encoder": self.job.encoder.identity,
                "K": len(self.job.asking.template),
                "D": width,
                "template": self.job.asking.template,
                "users": users,
                "chains": chains,
                "written": {**asked, "per_second": _rate(asked["asked"], seconds["write"])},
                "unique_texts": texts["unique"],
                "encoded": {"texts": texts["encoded"], "per_second": _rate(texts["encoded"], seconds["encode"])},
                "absent": {**absent, "share": round(share, 4)},
                "usage": {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(self.spent.usage).items()},
                "per_million_users": _per_million(self.spent.usage, asked["asked"]),
                "seconds": {part: round(value, 2) for part, value in seconds.items()},
                "users_per_second": _rate(users, sum(seconds.values())),
            },
        )

    def _parts(self, description: str) -> Iterator[tuple[str, range]]:
        """All users of all splits, some at a time."""
        users = len(self.dataset.users)
        task = self.bars.add_task(description, total=users * len(SPLITS))
        for split in SPLITS:
            for first in range(0, users, USERS):
                part = range(first, min(first + USERS, users))
                yield split, part
                self.bars.advance(task, len(part))

    def _chains(self, split: str, users: range) -> list[Chain]:
        found = self.chains.get([self.keys.of(user, split) for user in users])
        if None in found:
            shutil.rmtree(self.folder / "chunks")
            raise StageError("chains are gone that were there when this run began: run it again, it will write them")
        return [Chain.decode(body) for body in found if body is not None]

    def _vectors(self, texts: list[str]) -> NDArray[np.float16]:
        """Of each text, float16 [len(texts), D]."""
        found = self.vectors.of(texts)
        if found is None:
            shutil.rmtree(self.folder / "chunks")
            raise StageError("vectors are gone that were there when this run began: run it again, it will encode them")
        return found

    def _matrix(self, split: str, K: int, width: int) -> _OnDisk:
        """H of a split on disk, all zeros."""
        shape = (len(self.dataset.users), K, width)
        return new_array(self.folder / f"{split}.npy", np.float16, shape)

    def _job(self, chunks: Chunks) -> Job:
        return replace(self.job, chunks=chunks.folder)

    @contextmanager
    def _seen(self) -> Iterator[Kept]:
        """Keys met in one pass: on disk, as there may be more of them than memory."""
        path = self.folder / "seen.sqlite"
        remove(path)
        with Kept(path, lasting=False) as seen:
            yield seen
        remove(path)

    def _nothing(self, count: int, fault: str) -> str:
        return (
            f"none of {count} chains by {self.job.writer.name} follows the template (the last one: {fault}): take a "
            "writer that can, give it more reason.max_tokens, or a template with fewer steps"
        )


@dataclass(slots=True)
class _Spent:
    """What a stage has taken so far, over all its runs; on disk after every chunk."""

    path: Path
    seconds: dict[str, float]
    usage: Usage
    since: float

    @classmethod
    def read(cls, path: Path) -> Self:
        """Go on from what an earlier run wrote."""
        none = {"seconds": dict.fromkeys(("write", "encode", "assemble"), 0.0), "usage": {}}
        body: dict[str, Any] = read_json(path) if path.exists() else none
        return cls(path, body["seconds"], Usage(**body["usage"]), time.monotonic())

    def on(self, part: str, usage: Usage | None = None) -> None:
        """The time since the last call went into `part`."""
        now = time.monotonic()
        self.seconds[part] += now - self.since
        self.since = now
        self.usage += usage or Usage()
        write_json(self.path, {"seconds": self.seconds, "usage": asdict(self.usage)})


def _rate(count: int, seconds: float) -> float:
    return float(f"{count / max(seconds, 1e-9):.3g}")  # a small model may take minutes for one user


def _per_million(usage: Usage, asked: int) -> dict[str, float] | None:
    """What a million users would take with a chain for each split, none of them there before; None if none was asked.

    Answers that came from a cache have cost nothing here, and would there: it goes by the others. `cost` is in the
    currency of the recipe's prices, `hours` those of the writer alone, as it ran here.
    """
    paid = asked - usage.cached
    if paid <= 0:
        return None
    times = 1e6 * len(SPLITS) / paid
    return {
        "cost": round(usage.cost * times, 2),
        "hours": round(usage.seconds * times / 3600, 2),
        "prompt_tokens": round(usage.prompt_tokens * times),
        "completion_tokens": round(usage.completion_tokens * times),
    }
