"""What is known about a user when a request arrives: recent history, reasoning and its text, in one round trip."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from typing import Literal

from service.degraded import StoreFailure
from service.errors import StoreError, StoreTimeout
from service.release.blob import BlobMiss, Reasoning, decode
from service.release.manifest import ReasoningEntry
from service.store.base import Store
from service.store.keys import history_key, reasoning_key, steps_key, user_tag
from service.store.records import RecordMiss, decode_history, decode_steps

Unasked = Literal["disabled", "unsupported"]  # the request wants no reasoning; the model reads none
Miss = BlobMiss | Unasked | StoreFailure


@dataclass(frozen=True, slots=True)
class Profile:
    """A user's side of a request. Exactly one of `reasoning` and `miss` is set."""

    reasoning: Reasoning | None
    miss: Miss | None
    history: list[str] | None = None  # item ids, oldest first; None if none is stored or none was asked for
    steps: list[str] = field(default_factory=list)  # text of each step, if asked for and stored
    store_failure: StoreFailure | None = None
    history_miss: RecordMiss | None = None  # why there is no stored history, if one was asked for
    history_length: int | None = None  # items the user has had, those that are no longer kept included

    @property
    def behind(self) -> int | None:
        """Items the user has had since the reasoning was written; None without reasoning or stored history."""
        if self.reasoning is None or self.history_length is None:
            return None
        return max(0, self.history_length - self.reasoning.history_length)

    @property
    def age_seconds(self) -> int | None:
        """Time since the reasoning was written; None without reasoning."""
        return None if self.reasoning is None else max(0, int(time.time()) - self.reasoning.written)


class Profiles:
    """Reads profiles for one release. A store that fails is a labelled miss: the user is still answered."""

    def __init__(self, store: Store, release_id: str) -> None:
        self._store = store
        self._release = release_id

    async def fetch(
        self,
        user_id: str,
        entry: ReasoningEntry | None,  # what the model reads, None for a model that reads no reasoning
        *,
        history: bool,  # is the stored history needed?
        reasoning: bool,
        steps: bool,
        seconds: float,  # the store's share of the time that is left
    ) -> Profile:
        """Fetch what is asked for in at most one `Store.get`. Never raises a StoreError."""
        unasked: Unasked | None = "unsupported" if entry is None else None if reasoning else "disabled"
        tag = user_tag(user_id)
        keys: list[bytes] = []
        if history:
            keys.append(history_key(tag))
        if entry is not None and reasoning:
            keys.append(reasoning_key(tag, self._release, entry.name))
            if steps:
                keys.append(steps_key(tag, self._release))
        if not keys:
            return Profile(None, unasked)
        try:
            async with asyncio.timeout(seconds):
                values = iter(await self._store.get(keys))
        except (StoreError, TimeoutError) as error:
            late = isinstance(error, (StoreTimeout, TimeoutError))
            failure: StoreFailure = "store_timeout" if late else "store_unavailable"
            return Profile(None, unasked or failure, store_failure=failure)

        stored = decode_history(next(values)) if history else None
        known = Profile(None, unasked)
        if isinstance(stored, RecordMiss):
            known = replace(known, history_miss=stored)
        elif stored is not None:
            known = replace(known, history=stored.items, history_length=stored.length)
        if entry is None or not reasoning:
            return known
        decoded = decode(next(values), entry.blob_format(self._release), user_id)
        if decoded is BlobMiss.user:
            return Profile(None, decoded)  # a reply meant for another user: its history is not to be trusted either
        if isinstance(decoded, BlobMiss):
            return replace(known, miss=decoded)
        return replace(known, reasoning=decoded, steps=(decode_steps(next(values)) or []) if steps else [])
