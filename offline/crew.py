"""Training in several processes: torch's DistributedDataParallel, started as `torchrun` starts it.

Every process goes through the same batches and takes its share of each; a batch is the recipe's whatever the number of
processes, and so is what comes out, up to rounding and which neurons dropout drops.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed, nn

from offline.errors import TrainingError

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Crew:
    """The processes that train one model, seen from one of them."""

    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls) -> Self:
        """The crew that this process was launched in; outside of `launch`, itself alone."""
        if not distributed.is_initialized():
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this process writes what one of them has to write."""
        return self.rank == 0

    def share(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """This process's part of a batch, or of users; empty where there are more processes than rows."""
        return rows[self.rank :: self.size]

    def joined(self, objective: nn.Module) -> nn.Module:
        """The objective, with gradients averaged over the crew at every backward pass."""
        if self.size == 1:
            return objective
        with warnings.catch_warnings():
            # What stands in for it since torch 2.13 is not known to those before.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            return nn.parallel.DistributedDataParallel(objective, broadcast_buffers=False)

    def gathered(self, own: _T) -> list[_T]:
        """What each process has, by rank."""
        if self.size == 1:
            return [own]
        everyone: list[Any] = [None] * self.size
        distributed.all_gather_object(everyone, own)
        return everyone


def launch(processes: int, work: Callable[..., None], *arguments: object) -> None:
    """Run `work(*arguments)` in each of `processes` processes and wait for them.

    `work` is a function of a module, and everything given to it can be pickled. Raises TrainingError with the first
    failure; the others are stopped.
    """
    from torch.distributed.elastic.multiprocessing import SignalException  # noqa: PLC0415 - not for one process
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: PLC0415
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch  # noqa: PLC0415

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="scoter",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
    )
    try:
        elastic_launch(config, _member)(work, arguments)
    except SignalException as stopped:
        raise KeyboardInterrupt from stopped
    except ChildFailedError as failed:
        _, failure = failed.get_first_failure()
        message: Any = failure.message
        told = message["message"] if isinstance(message, dict) else message
        raise TrainingError(str(told).removeprefix("TrainingError: ")) from failed


def _member(work: Callable[..., None], arguments: tuple[object, ...]) -> None:
    gpu = torch.cuda.is_available()
    distributed.init_process_group("nccl" if gpu else "gloo")
    try:
        if gpu:
            torch.cuda.set_device(distributed.get_rank() % torch.cuda.device_count())
        else:
            torch.set_num_threads(max(1, torch.get_num_threads() // distributed.get_world_size()))
        # Who fails while others still connect to it would hide its reason behind theirs.
        distributed.barrier()
        work(*arguments)
    finally:
        distributed.destroy_process_group()
