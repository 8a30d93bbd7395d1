"""How many requests are answered at the same time; one more is refused at once instead of making all of them late."""

from __future__ import annotations

from types import TracebackType

from service.errors import Overloaded


class Admission:
    """A bounded number of places, each held by one request while it is answered.

    with admission:
        ...
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self.taken = 0

    def spare(self) -> bool:
        """Whether half of the places are free: work that nobody waits for may run."""
        return 2 * self.taken < self._places

    def __enter__(self) -> None:
        """Take a place. Raises Overloaded if there is none."""
        if self.taken >= self._places:
            raise Overloaded(f"{self._places} requests are being answered already: ask another replica, or come back")
        self.taken += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the place back."""
        self.taken -= 1
