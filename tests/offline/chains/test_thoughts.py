from __future__ import annotations

import pytest

from offline.chains.thoughts import without_thoughts
from offline.errors import AnswerError


@pytest.mark.parametrize(
    "text", ["Answer", "<think>Hm.</think>Answer", "Hm.</ Thinking >Answer", "<think>a</think>b</think>Answer"]
)
def test_only_what_follows_thoughts_is_left(text: str) -> None:
    assert without_thoughts(text) == "Answer"


@pytest.mark.parametrize("text", ["<think>Answer", " < thinking >\nAnswer", "<think>a</think> <think>Answer"])
def test_thoughts_that_were_cut_off_hold_no_answer(text: str) -> None:
    with pytest.raises(AnswerError, match="never ended"):
        without_thoughts(text)
