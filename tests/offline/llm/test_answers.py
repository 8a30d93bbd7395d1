"""Backend `endpoint` before a server of which every word is made up: no model is served, so these are quick."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from offline.errors import LLMError, RecipeError
from offline.llm import endpoint as module
from offline.llm import pace
from offline.llm.base import Answer
from offline.llm.cache import AnswerCache
from offline.llm.chat import checked_url, key_from_environment
from offline.llm.endpoint import EndpointBackend
from tests.offline.llm.backends import KEY, Open
from tests.offline.llm.prompts import asks
from tests.offline.llm.server import Asked, Fault, Layer, Send, completion, respond, says, status
from tests.ports import free_port


@pytest.fixture
def layer() -> Iterator[Layer]:
    """With nothing behind it."""
    running = Layer(f"http://127.0.0.1:{free_port()}/v1")
    running.always = says(completion("fine"))
    yield running
    running.stop()


def answers(backend: EndpointBackend, numbers: range = range(1), **sampling: Any) -> list[Answer]:
    """To these of the prompts that `asks` makes."""
    prompts = [asks(number + 1, **sampling)[-1] for number in numbers]
    return sorted(backend.answer(prompts), key=lambda answer: answer.index)


def refuses(numbers: range) -> Fault:
    """These of the prompts that `asks` makes, whenever they are asked; the others are answered."""

    async def fault(asked: Asked, send: Send) -> None:
        found = re.search(r"\d+", json.dumps(asked.body["messages"][-1]))
        refused = found is not None and int(found[0]) in numbers
        await (status(400, "content filter") if refused else says(completion("fine")))(asked, send)

    return fault


def test_prompts_that_failed_before_are_no_sign_of_a_broken_endpoint(
    connect: Open, layer: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage that goes on asks them again, and no other one may be between them."""
    monkeypatch.setattr(module, "FAILED_IN_A_ROW", 4)
    layer.always = refuses(range(0, 40, 4))
    first = answers(connect(concurrency=1), range(40))
    assert sum(answer.error is not None for answer in first) == 10
    for sampling in ({}, {"temperature": 0.7, "seed": 1}):  # as a second try has it
        again = answers(connect(concurrency=1), range(0, 40, 4), **sampling)
        assert all("content filter" in str(answer.error) for answer in again)
    layer.always = status(400, "unknown parameter")
    with pytest.raises(LLMError, match="failed on 4 prompts in a row"):
        answers(connect(concurrency=1), range(36, 60))


@pytest.mark.parametrize("after", ["0", "-3", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_refusal_that_names_no_time_to_come_is_not_met_at_once(
    connect: Open, layer: Layer, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    """Its clock may be behind ours, or its seconds rounded down."""
    monkeypatch.setattr(pace, "FIRST_WAIT", 0.2)
    layer.faults.extend([status(429, headers={"Retry-After": after})] * 3)
    (answer,) = answers(connect(retries=3))
    assert answer.texts == ("fine",)
    times = [asked.at for asked in layer.asked]
    assert times[1] - times[0] >= 0.1
    assert times[2] - times[1] >= 0.2
    assert times[3] - times[2] >= 0.4


@pytest.mark.parametrize(
    "body, words",
    [
        (b'{"error": {"message": "top_p is unknown", "type": "invalid"}}', "top_p is unknown"),
        (b'{"message": "top_p is unknown"}', "top_p is unknown"),
        (b'{"error": "`top_p` must be < 1.0", "error_type": "validation"}', "`top_p` must be < 1.0"),
        (
            b'{"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs"}]}',
            '"loc": ["body", "seed"], "msg": "Extra inputs"',
        ),
        (b'{"message": {"detail": [{"loc": ["body", "seed"]}]}}', '"loc": ["body", "seed"]'),
        (b"404 page not found", "404 page not found"),
        (b"", "Error code: 400"),
    ],
)
def test_a_refusal_is_told_in_the_servers_words(connect: Open, layer: Layer, body: bytes, words: str) -> None:
    async def fault(asked: Asked, send: Send) -> None:
        await respond(send, 400, body)

    layer.always = fault
    (answer,) = answers(connect())
    assert answer.error is not None
    assert answer.error.startswith("status 400: ")
    assert words in answer.error


def test_half_a_key_is_told_to_nobody_either(connect: Open, layer: Layer) -> None:
    """Where the quotation ends in the middle of it."""
    layer.always = says(b"<html>" + b"x" * 60 + KEY.encode() + b" is wrong")
    (answer,) = answers(connect(retries=0))
    assert answer.error is not None
    assert KEY[:10] not in answer.error
    assert "***" in answer.error


@pytest.mark.parametrize("key", ["sk-first\nsk-second", "sk-with a-gap", "sk-schlüssel"])
def test_a_key_that_can_be_in_no_header_is_refused_and_not_quoted(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("SCOTER_LLM_API_KEY", key)
    with pytest.raises(LLMError, match="SCOTER_LLM_API_KEY holds more than a key") as error:
        key_from_environment()
    assert "sk-" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    ["http://localhost:8o00/v1", "http://localhost:80000/v1", "http://user:hush@[::1/v1", "http://user:hu/sh@host/v1"],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(RecipeError, match=r"teacher\.base_url is no URL") as error:
        checked_url(url)
    assert "hu" not in str(error.value)


def message(content: Any, finish: str = "stop", **fields: Any) -> Fault:
    """A completion of one message."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **fields}, "finish_reason": finish}
    return says(json.dumps({"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 5}}).encode())


def test_thoughts_beside_the_text_are_no_part_of_it(connect: Open, layer: Layer) -> None:
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
    layer.always = message([thinking, {"type": "text", "text": "fi"}, {"type": "text", "text": "ne"}])
    assert answers(connect())[0].texts == ("fine",)
    layer.always = message("fine", reasoning_content="hm")
    assert answers(connect(), range(1, 2))[0].texts == ("fine",)
    assert len(layer.asked) == 2


def test_a_refusal_by_the_model_is_not_asked_for_again(connect: Open, layer: Layer) -> None:
    layer.always = message(None, refusal="I cannot help with that.")
    (answer,) = answers(connect())
    assert answer.error == "the model refuses to answer"
    assert len(layer.asked) == 1


@pytest.mark.parametrize("finish", ["insufficient_system_resource", "error", "abort"])
def test_a_text_that_the_server_broke_off_is_no_answer(connect: Open, layer: Layer, finish: str) -> None:
    layer.faults.append(message("fi", finish))
    assert answers(connect())[0].texts == ("fine",)
    layer.always = message("fi", finish)
    (answer,) = answers(connect(retries=0), range(1, 2))
    assert f"the server broke the answer off ({finish})" in str(answer.error)


@pytest.mark.parametrize(
    "bad",
    [
        {"index": 1, "finish_reason": "content_filter"},
        {"index": 1, "message": None, "finish_reason": "error"},
        {"index": 1, "message": "cut off", "finish_reason": "stop"},
        "cut off",
    ],
)
def test_one_answer_that_cannot_be_read_costs_none_of_the_others(connect: Open, layer: Layer, bad: Any) -> None:
    whole = json.loads(completion("one", "two"))
    whole["choices"].insert(1, bad)
    layer.faults.append(says(json.dumps(whole).encode()))
    layer.always = says(completion("three"))
    (answer,) = answers(connect(concurrency=1), n=3, seed=5)
    assert answer.texts == ("one", "two", "three")
    assert [(asked.body.get("n", 1), asked.body["seed"]) for asked in layer.asked] == [(3, 5), (1, 7)]


def test_a_filter_that_takes_the_message_too_is_not_asked_again(connect: Open, layer: Layer) -> None:
    layer.always = says(json.dumps({"choices": [{"index": 0, "finish_reason": "content_filter"}]}).encode())
    (answer,) = answers(connect())
    assert answer.error == "withheld by the server's content filter"
    assert len(layer.asked) == 1


def test_half_a_surrogate_pair_costs_neither_the_answer_nor_the_run(connect: Open, layer: Layer) -> None:
    layer.always = message("cut at \ud83d", "length")
    assert answers(connect())[0].texts == ("cut at ?",)
    layer.always = message('{"answer": "written as \\ud83d"}')
    assert answers(connect(structured="json"))[0].texts == ("written as ?",)
    assert len(layer.asked) == 2
    layer.always = status(400, "too long: \ud83d")
    assert answers(connect(), range(1, 2))[0].error == "status 400: too long: ?"


@pytest.mark.parametrize(
    "content",
    ['```json\n{"answer": "yes"}\n```', '<think>{"answer": "no"}?</think>\n{"answer": "yes"}', 'So: {"answer": "yes"}'],
)
def test_an_answer_in_json_may_have_something_around_it(connect: Open, layer: Layer, content: str) -> None:
    layer.always = message(content)
    assert answers(connect(structured="json"))[0].texts == ("yes",)
    assert len(layer.asked) == 1


@pytest.mark.parametrize(
    "usage, tokens, estimated",
    [
        ({"prompt_tokens": 10, "completion_tokens": 9, "total_tokens": 19}, (10, 9), 0),
        (
            {"prompt_tokens": 10, "completion_tokens": 9, "total_tokens": 500},
            (10, 490),
            0,
        ),  # thoughts, which are billed
        ({"prompt_tokens": 10, "completion_tokens": 9, "total_tokens": None}, (10, 9), 0),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, (15, 10), 1),
        ({"prompt_tokens": 10, "completion_tokens": 0}, (15, 10), 1),
    ],
)
def test_nothing_that_is_billed_goes_uncounted(
    connect: Open, layer: Layer, usage: dict[str, Any], tokens: tuple[int, int], estimated: int
) -> None:
    layer.always = says(completion("x" * 30, usage=usage))
    backend = connect(prompt_price=1e6, completion_price=1e6)
    answers(backend)
    used = backend.usage
    assert (used.prompt_tokens, used.completion_tokens, used.estimated) == (*tokens, estimated)
    assert used.cost == pytest.approx(sum(tokens))


def test_the_time_taken_is_known_with_each_answer(connect: Open, layer: Layer) -> None:
    """Stages read the usage between answers, and a million users are reckoned from it."""
    layer.faults.append(status(429, headers={"Retry-After": "0.3"}))
    backend = connect()
    reading = backend.answer(asks(1))
    next(reading)
    assert backend.usage.seconds >= 0.3
    whole = backend.usage.seconds
    assert list(reading) == []
    assert whole <= backend.usage.seconds < whole + 0.3


def test_a_server_that_knows_no_seed_is_asked_without(connect: Open, layer: Layer) -> None:
    words = b'{"message": {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}}'

    async def fault(asked: Asked, send: Send) -> None:
        if "seed" in asked.body:
            await respond(send, 422, words)
        else:
            await says(completion(*["fine"] * asked.body.get("n", 1)))(asked, send)

    layer.always = fault
    found = answers(connect(concurrency=1, retries=0), range(3), n=2, seed=7)
    assert [answer.texts for answer in found] == [("fine", "fine")] * 3
    assert [("seed" in asked.body, asked.body["n"]) for asked in layer.asked] == [(True, 2), *[(False, 2)] * 3]


@pytest.mark.timeout(60)
def test_a_disk_that_is_full_ends_the_run_also_for_those_who_wait_for_the_budget(
    connect: Open, layer: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise LLMError("database or disk is full")

    async def slowly(asked: Asked, send: Send) -> None:
        await anyio.sleep(0.3)  # both have come to the purse by then
        await says(completion("fine"))(asked, send)

    layer.always = slowly
    backend = connect(concurrency=2, prompt_price=1e6, completion_price=1e6, budget=100.0)  # of one request
    monkeypatch.setattr(AnswerCache, "put", full)
    with pytest.raises(LLMError, match="disk is full"):
        answers(backend, range(4))
