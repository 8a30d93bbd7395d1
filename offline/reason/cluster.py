"""The same work on Ray Data, on one machine or many.

A chunk is a row: actors that hold the writer, and after them actors that hold the encoder, take one at a time, and what
they made comes back to this process, which keeps it. Their machines have to reach the work folder, and the folders of
local models, under the same paths. Chunks are those of the local engine, so the output is the same to the byte; an
actor that dies is started again and its chunk given to whoever is free.

A writer that keeps a budget or a rate is asked from this process alone; only the encoding is spread then.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offline import errors
from offline.errors import OfflineError, StageError
from offline.llm.base import Usage
from offline.prepare import Dataset, load_dataset
from offline.reason.chains import Chain, Scribe
from offline.reason.chunks import Chunks
from offline.reason.engines import Ask, Job, Local, Written, written

Row = dict[str, Any]
Batch = dict[str, NDArray[Any]]


class Ray:
    """On the cluster that RAY_ADDRESS names, or on one that is started here and stopped at the end.

    `workers` actors at a time; 0 for one per GPU, or one per CPU core where there is none. Raises StageError if Ray is
    not installed or gives up.
    """

    def __init__(self, workers: int = 0) -> None:
        try:
            import ray  # noqa: F401, PLC0415 - an extra
        except ImportError as error:
            raise StageError("--engine ray needs Ray: pip install -e '.[ray]' in a checkout") from error
        self._workers = workers

    def write(self, job: Job, dataset: Dataset, asks: Iterable[Ask]) -> Iterator[Written]:
        """See Engine. Actors read the data set themselves."""
        if job.writer.alone:
            yield from Local().write(job, dataset, asks)
            return
        rows = ({"name": ask.name, "left": json.dumps(ask.left)} for ask in asks)
        for row in self._map(_Writing, job, rows):
            chains = [(bytes.fromhex(key), Chain.decode(body)) for key, body in json.loads(row["chains"])]
            yield Written(chains, Usage(**json.loads(row["usage"])))

    def encode(self, job: Job, names: Iterable[str]) -> Iterator[tuple[str, NDArray[np.float16]]]:
        """See Engine."""
        for row in self._map(_Encoding, job, ({"name": name} for name in names)):
            yield row["name"], np.frombuffer(row["vectors"], np.float16).reshape(-1, row["width"])

    def _map(self, worker: type[_Writing | _Encoding], job: Job, rows: Iterable[Row]) -> Iterator[Row]:
        """Every row through an actor, in any order."""
        items = list(rows)
        if not items:
            return
        import ray  # noqa: PLC0415 - an extra
        from ray.exceptions import RayError  # noqa: PLC0415

        started = not ray.is_initialized()
        try:
            if started:
                # By itself Ray starts workers at 15: beside anything else that computes they would stand still.
                os.environ.setdefault("RAY_worker_niceness", "0")
                ray.init(include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False)
            logging.getLogger("ray.data").setLevel(logging.WARNING)  # it tells of every run that ends well
            context = ray.data.DataContext.get_current()
            context.enable_progress_bars = False
            context.print_on_execution_start = False
            there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
            gpus = int(there.get("GPU", 0))
            workers = min(len(items), self._workers or gpus or int(there["CPU"]))
            made = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
                worker,
                fn_constructor_args=(job,),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=workers),
                num_cpus=0 if gpus else 1,
                num_gpus=1 if gpus else 0,
            )
            for row in made.iter_rows():
                if row["fault"]:
                    name, message = json.loads(row["fault"])
                    raise getattr(errors, name)(message)
                yield row
        except RayError as error:
            raise StageError(
                f"Ray gave up: {str(error).splitlines()[0]}; what was done is kept, run it again"
            ) from error
        finally:
            if started:
                ray.shutdown()


class _Writing:
    """An actor that holds the data set and a writer's model."""

    def __init__(self, job: Job) -> None:
        self._chunks = Chunks(job.chunks)
        self._scribe = Scribe(load_dataset(job.prepared), job.writer, job.asking)

    def __call__(self, batch: Batch) -> Batch:
        return _answer(batch, self._write, chains="[]", usage="{}")

    def _write(self, row: Row) -> Row:
        left = json.loads(row["left"])
        made = written(self._scribe, self._chunks, Ask(row["name"], None if left is None else tuple(left)))
        chains = [(key.hex(), chain.encode().decode()) for key, chain in made.chains]
        return {"chains": json.dumps(chains), "usage": json.dumps(asdict(made.usage))}


class _Encoding:
    """An actor that holds the encoder."""

    def __init__(self, job: Job) -> None:
        self._chunks = Chunks(job.chunks)
        self._encoder = job.encoder.open()

    def __call__(self, batch: Batch) -> Batch:
        return _answer(batch, self._encode, name="", vectors=b"", width=0)

    def _encode(self, row: Row) -> Row:
        vectors = self._encoder.encode(self._chunks.read(row["name"]).rows).astype(np.float16)
        return {"name": row["name"], "vectors": vectors.tobytes(), "width": vectors.shape[1]}


def _answer(batch: Batch, work: Callable[[Row], Row], **empty: Any) -> Batch:  # noqa: ANN401 - columns of any type
    """One row's result; an error that this program knows travels as a value: Ray would ask again, and wrap it."""
    row = {name: column[0] for name, column in batch.items()}
    try:
        found = {**empty, **work(row), "fault": ""}
    except OfflineError as error:
        found = {**empty, "fault": json.dumps([type(error).__name__, str(error)])}
    return {name: np.array([value], dtype=object) for name, value in found.items()}
