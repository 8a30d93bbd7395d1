from __future__ import annotations

import pytest

from service.admission import Admission
from service.errors import Overloaded


def test_the_last_place_is_taken_and_given_back() -> None:
    admission = Admission(2)
    with admission, admission:
        assert admission.taken == 2
        with pytest.raises(Overloaded, match="2 requests"), admission:
            pytest.fail("there was no place")
        assert admission.taken == 2
    assert admission.taken == 0


def test_a_request_that_fails_gives_its_place_back() -> None:
    admission = Admission(1)
    for _ in range(3):
        with pytest.raises(RuntimeError), admission:
            raise RuntimeError
    assert admission.taken == 0


def test_there_is_room_to_spare_while_half_the_places_are_free() -> None:
    admission = Admission(4)
    assert admission.spare()
    with admission:
        assert admission.spare()
        with admission:
            assert not admission.spare()
