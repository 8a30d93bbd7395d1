from __future__ import annotations

from pathlib import Path

from service.memory import trim


def resident() -> int:
    """Bytes of this process's own memory that are in the machine's."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith("RssAnon:")]
    return int(line.split()[1]) * 1024


def test_what_is_free_goes_back_to_the_system() -> None:
    blocks = [bytes(2000) for _ in range(40_000)]
    del blocks[:-1]  # beneath one that is in use, where the allocator keeps them by itself
    held = resident()
    trim()
    assert held - resident() > 40_000_000
