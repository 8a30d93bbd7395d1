import re
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline.chains.rationale import MIN_CHARS, OVERALL, SUMMARY, Chain, View, admission, ask, parse, pattern, write
from offline.chains.template import MANUAL
from offline.errors import AnswerError
from offline.llm.base import Rationale, Sampling
from offline.prepare import Dataset, ItemText

TEMPLATE = MANUAL["three-step"].steps
CHAIN = Chain(
    "The customer cares for nails and skin.",
    (
        "Bought two polishes, then creams.",
        "Nails stay, skin care is new and growing.",
        "A **paraffin** bath for hands: care at home.".replace("**", ""),
    ),
    "From decoration to care, so a bath for hands.",
)


def test_what_is_written_is_read_again() -> None:
    assert parse(write(CHAIN, TEMPLATE), TEMPLATE) == CHAIN


_WORDS = st.lists(st.from_regex(r"[a-z]{4,9}", fullmatch=True), min_size=4, max_size=30, unique=True).map(" ".join)


@given(st.lists(_WORDS, min_size=5, max_size=5, unique=True))
def test_any_chain_of_plain_words_is_read_again(texts: list[str]) -> None:
    chain = Chain(texts[0], tuple(texts[1:-1]), texts[-1])
    assert parse(write(chain, TEMPLATE), TEMPLATE) == chain


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    for answer in (text, f"{OVERALL}: {text}", write(CHAIN, TEMPLATE) + text):
        with suppress(AnswerError):
            assert len(parse(answer, TEMPLATE).steps) == len(TEMPLATE)


def _marked(heading: Callable[[int, str], str]) -> str:
    names = (OVERALL, *TEMPLATE, SUMMARY)
    texts = (CHAIN.overall, *CHAIN.steps, CHAIN.summary)
    return "\n\n".join(heading(place, name) + text for place, (name, text) in enumerate(zip(names, texts, strict=True)))


@pytest.mark.parametrize(
    "answer",
    [
        _marked(lambda _, name: f"**{name}:** "),
        _marked(lambda _, name: f"**{name}**: "),
        _marked(lambda _, name: f"### {name}\n"),
        _marked(lambda place, name: f"{place}. {name}: "),
        _marked(lambda place, name: f"**{place}. {name.upper()}**\n- "),
        _marked(lambda place, name: f"Step {place}: {name} - " if 0 < place < 4 else f"{name}: "),
        _marked(lambda _, name: f"__{name.lower()}__：").replace("\n", "\r\n"),
        "<think>Overall Analysis: is it nails?\nSummary: yes</think>\n\n" + write(CHAIN, TEMPLATE),
        "is it nails?</think>" + write(CHAIN, TEMPLATE),
        f"```markdown\n{write(CHAIN, TEMPLATE)}\n```",
        "Certainly! Here it is.\n\n# Structured rationale\n\n" + write(CHAIN, TEMPLATE) + "<|im_end|>",
        write(CHAIN, TEMPLATE).replace(". ", ".\n"),
        _marked(lambda _, name: f"{name}\n=====\n"),
        _marked(lambda place, name: f"{name}: ").replace("\n\n", "\n\n---\n\n") + "\n\n* * *",
    ],
)
def test_mark_up_around_a_chain_is_repaired(answer: str) -> None:
    assert parse(answer, TEMPLATE) == CHAIN


def _edited(edit: Callable[[list[str]], object]) -> str:
    paragraphs = write(CHAIN, TEMPLATE).split("\n\n")
    edit(paragraphs)
    return "\n\n".join(paragraphs)


@pytest.mark.parametrize(
    "answer,reason",
    [
        ("", "an empty answer"),
        ("<|im_end|>", "an empty answer"),
        ("<think>Overall Analysis: hm", "thinking that never ended"),
        ("I recommend a bath.", "no 'Overall Analysis'"),
        (_edited(lambda p: p.pop(2)), "no 'User Interest Extraction'"),
        (_edited(lambda p: p.pop()), "no 'Summary': the answer ends before it, as max_tokens may have it"),
        (_edited(lambda p: p.__delitem__(slice(2, None))), "no 'User Interest Extraction': the answer ends before it"),
        (_edited(lambda p: p.append(p[1])), "'User Profile Summary' comes twice"),
        (_edited(lambda p: p.insert(1, p.pop(2))), "the steps are in another order"),
        (_edited(lambda p: p.insert(2, "### Budget\nA small one, for sure.")), "a heading that was not asked for"),
        (_edited(lambda p: p.insert(2, "**Budget**\nA small one.")), "a heading that was not asked for"),
        (_edited(lambda p: p.__setitem__(2, f"{TEMPLATE[1]}: ...")), "'User Interest Extraction' has less than"),
        (_edited(lambda p: p.__setitem__(2, f"{TEMPLATE[1]}: {'word ' * 400}")), "'User Interest Extraction' has more"),
        (_edited(lambda p: p.__setitem__(2, f"{TEMPLATE[1]}: {'soap and soap, ' * 20}")), "goes in circles"),
        (_edited(lambda p: p.__setitem__(2, f"{TEMPLATE[1]}: lovely lovely Lovely lovely soap")), "goes in circles"),
        (_edited(lambda p: p.__setitem__(3, f"{TEMPLATE[2]}: **{CHAIN.steps[0].upper()}**")), "copies"),
    ],
)
def test_what_is_no_chain_is_refused_with_its_reason(answer: str, reason: str) -> None:
    with pytest.raises(AnswerError, match=re.escape(reason)):
        parse(answer, TEMPLATE)


def test_an_answer_that_goes_on_without_a_step_was_not_cut_off() -> None:
    with pytest.raises(AnswerError, match=r"no 'User Interest Extraction'\Z"):
        parse(_edited(lambda p: p.pop(2)), TEMPLATE)


def test_a_refusal_quotes_nothing_of_the_answer() -> None:
    with pytest.raises(AnswerError) as refused:
        parse(_edited(lambda p: p.insert(2, "### Mrs Miller's wishes\nA small one.")), TEMPLATE)
    assert "Miller" not in str(refused.value)


def test_a_step_may_be_called_like_the_frame() -> None:
    template = ("Look Closely", "Summary", "Item Recommendation")
    assert parse(write(CHAIN, template), template) == CHAIN


def test_a_sub_heading_in_a_line_belongs_to_its_step() -> None:
    answer = _edited(lambda p: p.__setitem__(2, f"{TEMPLATE[1]}: **Stable:** polish.\nRecent: creams, mostly."))
    assert parse(answer, TEMPLATE).steps[1] == "Stable: polish. Recent: creams, mostly."


@pytest.mark.parametrize(
    "words",
    [
        "As we were told, it is a bath.",
        "The actual next purchase is a bath.",
        "The next purchase was a bath.",
        "And indeed she did buy a bath.",
        "The target item fits all that.",
    ],
)
def test_a_chain_that_says_that_it_was_told_is_found_out(words: str) -> None:
    assert admission(CHAIN) is None
    assert admission(Chain(CHAIN.overall, (*CHAIN.steps[:2], words), CHAIN.summary)) is not None


def test_the_pattern_matches_what_is_written_and_nothing_shorter() -> None:
    expression = re.compile(pattern(TEMPLATE))
    assert expression.fullmatch(write(CHAIN, TEMPLATE))
    assert not expression.fullmatch(_edited(lambda p: p.pop(2)))
    assert (
        re.compile(pattern(("What (and why)?", "A & B"))).fullmatch(write(CHAIN, ("What (and why)?", "A & B", "C")))
        is None
    )


@pytest.fixture
def dataset() -> Dataset:
    items = [ItemText(f"i{n}", f"thing {n}", f"thing {n}. maker {n}, kind {n % 3}", {}) for n in range(1, 10)]
    return Dataset(["ann"], items, [np.array([3, 5, 7, 2, 9, 4], np.int32)])


def test_a_prompt_shows_the_end_of_a_splits_history_and_nothing_after_it(dataset: Dataset) -> None:
    prompt = ask(dataset, 0, "train", TEMPLATE, Sampling(), View(2, 0))
    assert prompt.task == Rationale((5, 7), (3, 5, 7, 2), TEMPLATE)
    assert "Item 1: thing 5\nItem 2: thing 7\n" in prompt.messages[-1].content
    assert not re.search(r"thing [349]|maker|told", prompt.messages[-1].content)
    assert prompt.pattern is None


def test_hindsight_tells_the_training_target_and_no_other(dataset: Dataset) -> None:
    prompt = ask(dataset, 0, "train", TEMPLATE, Sampling(), View(10, 60), hindsight=True, hold=True)
    assert isinstance(prompt.task, Rationale)
    assert prompt.task.target == 2
    assert "next purchase was: thing 2. maker 2, kind 2" in prompt.messages[-1].content
    assert prompt.pattern is not None
    for split in ("valid", "test", "serve"):
        with pytest.raises(ValueError, match="may know its target"):
            ask(dataset, 0, split, TEMPLATE, Sampling(), View(), hindsight=True)


def test_the_shortest_section_is_as_long_as_is_said() -> None:
    def answer(text: str) -> str:
        return _edited(lambda p: p.__setitem__(4, f"{SUMMARY}: {text}"))

    assert parse(answer("x" * MIN_CHARS), TEMPLATE).summary == "x" * MIN_CHARS
    with pytest.raises(AnswerError):
        parse(answer("x" * (MIN_CHARS - 1)), TEMPLATE)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("mark", '_*-#>"')
def test_an_answer_that_runs_on_in_marks_is_read_in_no_time(mark: str) -> None:
    with pytest.raises(AnswerError):
        parse(mark * 60_000, TEMPLATE)
