"""`scoter abtest`: from logs to a report."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from offline.abtest.attribution import Attribution
from offline.abtest.logs import Rejected, read_exposures, read_histories, read_outcomes, read_stream
from offline.abtest.report import analyse, page, show, show_rejected
from offline.errors import DataError
from service.store.address import is_redis

STEP = 5_000  # exposures between two signs of life


def run_abtest(
    console: Console,
    exposures: Sequence[str],
    outcomes: Sequence[Path],
    *,
    users: Path | None,
    experiment: str | None,
    control: str | None,
    window: float,  # seconds
    groups: int,
    confidence: float,
    stream: str,
    html: Path | None,
    as_json: bool,
) -> dict[str, Any]:
    """Read, analyse and print. Raises DataError if a file cannot be read, or nothing in it can be used."""
    rejected = Rejected()
    attribution = Attribution(read_outcomes(outcomes, rejected), window)
    histories = {} if users is None else read_histories(users, rejected)
    with Console(stderr=True).status("reading exposures") as status:

        def tick() -> None:
            if attribution.counts["read"] % STEP == 0:
                status.update(f"reading exposures: {attribution.counts['read']:,}")

        async def drain(url: str) -> None:
            async for exposure in read_stream(url, stream, rejected):
                attribution.add(exposure)
                tick()

        for url in (place for place in exposures if is_redis(place)):
            asyncio.run(drain(url))
        for exposure in read_exposures([Path(place) for place in exposures if not is_redis(place)], rejected):
            attribution.add(exposure)
            tick()
    if not attribution.counts["used"]:
        show_rejected(console, {"count": rejected.count, "rows": [{"place": p, "reason": r} for p, r in rejected.rows]})
        counts = attribution.counts
        raise DataError(
            f"no exposure can be used: {counts['read']:,} read, of which {counts['shadow']:,} shadow and "
            f"{counts['forced']:,} forced; {rejected.count:,} rows could not be read"
        )
    report = analyse(
        attribution.answers(histories),
        rejected,
        control=control,
        only=experiment,
        groups=groups,
        confidence=confidence,
        window=window,
    )
    if html is not None:
        _write(html, page(report))
    if as_json:
        console.print_json(json.dumps(report))
    else:
        show(console, report)
        if html is not None:
            console.print(f"[green]✓[/] {escape(str(html))}", soft_wrap=True)
    return report


def _write(path: Path, text: str) -> None:
    fresh = path.with_name(path.name + ".new")
    try:
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from error
