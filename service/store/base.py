"""What the service needs of a user store, whichever it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol


class Store(Protocol):
    """Bytes by key. Keys come from `service.store.keys`; values are opaque here.

    Every method raises StoreUnavailable or StoreTimeout and no library's own exception.
    """

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values of `keys`, in order, None where there is none; one round trip. All keys are of one user."""
        ...

    async def put(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """Write pairs, replacing what is there; one batch, visible when this returns."""
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
