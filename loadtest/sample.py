"""What a process holds: memory, file descriptors, connections, threads."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import psutil


@dataclass(frozen=True)
class Sample:
    """What the service's process holds at one moment."""

    seconds: float  # since the start of the load
    rss: int  # bytes resident
    uss: int  # bytes that would be free if the process ended
    private: int  # bytes resident that no file backs: heap, stacks
    fds: int
    connections: int  # TCP, without the listening one
    threads: int

    @classmethod
    def take(cls, process: psutil.Process, begun: float) -> Sample:
        """Look at a process now; `begun` is the start of the load on `perf_counter`. Takes milliseconds."""
        memory = process.memory_full_info()
        connections = [one for one in process.net_connections("tcp") if one.status != psutil.CONN_LISTEN]
        return cls(
            seconds=perf_counter() - begun,
            rss=memory.rss,
            uss=memory.uss,
            private=memory.rss - memory.shared,
            fds=process.num_fds(),
            connections=len(connections),
            threads=process.num_threads(),
        )
