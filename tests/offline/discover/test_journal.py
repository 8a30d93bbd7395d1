from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from offline.discover.journal import Journal, Question
from offline.errors import LLMError
from offline.llm.base import Answer, Explore, Message, Prompt, Sampling, Usage


def _question(user: int, text: str = "what next?") -> Question:
    return Question(user, Prompt((Message("user", text),), Sampling(), Explore((user,), (user,))))


class _Echo:
    """Answers with the question; fails or dies where it is told to."""

    def __init__(self, *, fails: Sequence[int] = (), dies_after: int = 1000) -> None:
        self.asked: list[int] = []
        self.fails = fails
        self.dies_after = dies_after
        self.name, self.usage = "echo", Usage()

    def answer(self, prompts: Sequence[Prompt]) -> Iterator[Answer]:
        for index, prompt in enumerate(prompts):
            if len(self.asked) == self.dies_after:
                raise LLMError("gone")
            assert isinstance(prompt.task, Explore)
            (user,) = prompt.task.history
            self.asked.append(user)
            yield Answer(index, error="timed out") if user in self.fails else Answer(index, (f"for {user}",))

    def close(self) -> None:
        pass


QUESTIONS = [_question(user) for user in range(6)]


def test_a_dead_backend_loses_nothing_and_the_next_one_is_asked_for_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    heard: list[str] = []
    with pytest.raises(LLMError):
        Journal(path).ask(QUESTIONS, _Echo(dies_after=2), lambda _, reply: heard.extend(reply.texts))
    assert len(heard) == 2
    second = _Echo()
    journal = Journal(path)
    assert len(journal.missing(QUESTIONS)) == 4
    journal.ask(QUESTIONS, second, lambda *_: None)
    assert second.asked == [2, 3, 4, 5]
    assert [reply.texts for _, reply in journal.replies(QUESTIONS)] == [(f"for {user}",) for user in range(6)]
    third = _Echo()
    journal.ask(QUESTIONS, third, lambda *_: None)
    assert third.asked == []


def test_what_was_being_written_when_the_machine_stopped_is_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    Journal(path).ask(QUESTIONS, _Echo(), lambda *_: None)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    again = _Echo()
    journal = Journal(path)
    journal.ask(QUESTIONS, again, lambda *_: None)
    assert again.asked == [5]
    assert path.read_bytes() == whole


def test_a_prompt_that_failed_is_asked_again_by_the_next_run_and_its_answer_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    Journal(path).ask(QUESTIONS, _Echo(fails=[1, 4]), lambda *_: None)
    errors = [reply.error for _, reply in Journal(path).replies(QUESTIONS)]
    assert errors == [None, "timed out", None, None, "timed out", None]
    again = _Echo(fails=[4])
    journal = Journal(path)
    journal.ask(QUESTIONS, again, lambda *_: None)
    assert again.asked == [1, 4]
    assert [reply.error for _, reply in journal.replies(QUESTIONS)] == [None, None, None, None, "timed out", None]


def test_the_same_words_about_two_users_are_two_questions_and_twice_about_one_is_one(tmp_path: Path) -> None:
    backend = _Echo()
    journal = Journal(tmp_path / "a.jsonl")
    questions = [_question(1), _question(2), _question(1)]
    journal.ask(questions, backend, lambda *_: None)
    assert backend.asked == [1, 2]
    assert [reply.texts for _, reply in journal.replies(questions)] == [("for 1",), ("for 2",), ("for 1",)]
    assert [reply.texts for _, reply in journal.replies([_question(3)])] == [()]
