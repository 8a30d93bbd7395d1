"""What the service needs of a user store, whichever it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

Change = tuple[bytes, bytes | None, bytes]  # key, the value it must hold (None: no value), the value to put there


class Store(Protocol):
    """Bytes by key. Keys come from `service.store.keys`; values are opaque here.

    Every method raises StoreUnavailable or StoreTimeout and no library's own exception.
    """

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values of `keys`, in order, None where there is none.

        One round trip for the keys of one user; keys of many users may cost one per server.
        """
        ...

    async def put(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """Write pairs, replacing what is there; visible, and as durable as the store is, when this returns."""
        ...

    async def swap(self, key: bytes, old: bytes | None, new: bytes) -> bool:
        """Put `new` where `old` is (None: where nothing is), atomically; return whether `new` is there now.

        So it may be asked again when a reply was lost. An error leaves open whether it happened.
        """
        ...

    async def swap_all(self, changes: Iterable[Change]) -> list[bool]:
        """Many swaps in one batch, each for itself; the answers in order."""
        ...

    async def delete(self, keys: Iterable[bytes]) -> None:
        """Remove keys; absent ones are no error."""
        ...

    async def ping(self) -> None:
        """Return if the store answers; raise if it does not."""
        ...

    async def close(self) -> None:
        """Give connections and files back."""
        ...
