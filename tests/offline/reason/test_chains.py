from typing import NoReturn

import pytest

from offline.chains.rationale import View
from offline.chains.template import MANUAL
from offline.prepare import load_dataset
from offline.reason.chains import Asking, Keys
from offline.reason.writers import Writer
from offline.stage import Stage

ASKING = Asking(MANUAL["five-step"].steps, 512)


@pytest.mark.parametrize(
    "view, held, key",
    [
        (None, False, "659d535bd52b706ba5f5177d6b2542d6"),
        (View(10, 80), False, "c1bb462fad2c99f93c1d04d702ec0d77"),
        (View(10, 80), True, "55d0ff17b72c4d261dbde55f91e7718b"),
    ],
)
def test_a_chain_has_the_key_that_it_has_always_had(prepared: Stage, view: View | None, held: bool, key: str) -> None:
    """Under another one it would be paid for again, which only another question, or another way to ask it, is worth."""
    writer = Writer("a model", "model-1", view, 7, _unopened, held=held)
    assert Keys(load_dataset(prepared.folder), writer, ASKING).of(3, "valid").hex() == key


def _unopened(*_: object) -> NoReturn:
    raise AssertionError
