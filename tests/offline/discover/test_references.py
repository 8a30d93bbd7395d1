from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from offline import ranking
from offline.cooccurrence import Neighbours
from offline.discover.references import untrained
from tests.offline.analyst.shop import sample


def test_a_large_catalogue_is_scored_for_a_few_users_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = sample(tmp_path)
    users = range(25)
    expected = untrained(dataset, users)
    together: list[int] = []
    sold = Neighbours.sold

    def counted(self: Neighbours, own: Any) -> NDArray[np.int64]:
        together.append(len(own))
        return sold(self, own)

    monkeypatch.setattr(Neighbours, "sold", counted)
    monkeypatch.setattr(ranking, "_CELLS", 10 * (dataset.num_items + 1))
    found = untrained(dataset, users)
    assert together == [10, 10, 5]
    for one, other in zip(found, expected, strict=True):
        assert one.name == other.name
        assert (one.rank == other.rank).all()
        assert (one.masked == other.masked).all()
