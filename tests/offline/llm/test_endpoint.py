from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from offline.errors import LLMError, RecipeError
from offline.llm import endpoint as module
from offline.llm.base import Answer, Prompt
from offline.llm.cache import FILE, AnswerCache
from offline.llm.endpoint import EndpointBackend
from tests.offline.llm.backends import KEY, Open, recipe_of
from tests.offline.llm.prompts import ask, asks
from tests.offline.llm.server import Asked, Layer, Send, completion, says, sleeps, status
from tests.ports import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),  # a model is served, on a machine that may be busy
    pytest.mark.usefixtures("impatient"),
]


def answers(backend: EndpointBackend, prompts: list[Prompt]) -> list[Answer]:
    return sorted(backend.answer(prompts), key=lambda answer: answer.index)


def test_a_real_server_answers_and_counts(connect: Open, layer: Layer) -> None:
    backend = connect(prompt_price=1.0, completion_price=2.0)
    first, second = answers(backend, asks(2))
    assert first.texts[0]
    assert second.texts[0]
    assert first.error is second.error is None
    usage = backend.usage
    assert usage.requests == 2 == len(layer.asked)
    assert usage.prompt_tokens > 20
    assert 2 <= usage.completion_tokens <= 12
    assert usage.estimated == usage.retries == usage.failed == usage.cached == 0
    assert usage.cost == pytest.approx((usage.prompt_tokens + 2 * usage.completion_tokens) / 1e6)
    assert usage.seconds > 0
    assert layer.asked[0].headers["authorization"] == f"Bearer {KEY}"
    body = layer.asked[0].body
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.0, 0.9, 6)
    assert not {"n", "seed", "stop", "response_format"} & set(body)


def test_what_was_answered_is_not_asked_again(connect: Open, layer: Layer) -> None:
    before = answers(connect(), asks(3))
    again = connect(prompt_price=5.0)
    assert answers(again, asks(3)) == before
    assert len(layer.asked) == 3
    assert again.usage.cached == 3
    assert again.usage.requests == again.usage.cost == 0
    answers(again, [ask("What is 0 plus one?", max_tokens=3)])  # another question
    assert len(layer.asked) == 4


def test_the_same_prompt_twice_is_asked_once(connect: Open, layer: Layer) -> None:
    one, other, more = answers(connect(), [ask("Hello"), ask("Hello"), ask("Hello", n=2)])
    assert one.texts == other.texts == more.texts[:1]
    assert len(layer.asked) == 1
    assert layer.asked[0].body["n"] == 2


@pytest.mark.parametrize("ignores", [False, True])
def test_several_answers_come_in_one_request_or_in_several(connect: Open, layer: Layer, ignores: bool) -> None:
    layer.ignores_n = ignores
    backend = connect(concurrency=1)
    (answer,) = answers(backend, [ask("Name a fruit.", n=3, seed=5, temperature=1.0)])
    assert len(answer.texts) == 3
    assert [(asked.body.get("n", 1), asked.body["seed"]) for asked in layer.asked] == (
        [(3, 5), (1, 6), (1, 7)] if ignores else [(3, 5)]
    )
    (more,) = answers(backend, [ask("Name a fruit.", n=4, seed=5, temperature=1.0)])
    assert more.texts[:3] == answer.texts
    assert layer.asked[-1].body.get("n", 1) == 1  # the missing one
    assert layer.asked[-1].body["seed"] == 8


def test_a_server_that_refuses_n_is_asked_one_at_a_time(connect: Open, layer: Layer) -> None:
    layer.faults.append(status(400, "n > 1 is not supported"))
    layer.always = says(completion("fine"))
    backend = connect(concurrency=1, retries=0)
    assert [len(answer.texts) for answer in answers(backend, [ask("Hi", n=2), ask("Ho", n=2)])] == [2, 2]
    assert [asked.body.get("n", 1) for asked in layer.asked] == [2, 1, 1, 1, 1]


def test_a_prompt_that_is_refused_does_not_cost_the_others_their_n(connect: Open, layer: Layer) -> None:
    layer.faults.extend([status(400, "too long"), status(400, "too long")])
    layer.always = says(completion("fine", "well"))
    first, second = answers(connect(concurrency=1), [ask("long", n=2), ask("short", n=2)])
    assert first.error is not None
    assert "too long" in first.error
    assert len(second.texts) == 2
    assert [asked.body.get("n", 1) for asked in layer.asked] == [2, 1, 2]


def test_a_server_that_calls_the_limit_otherwise_is_asked_its_way(connect: Open, layer: Layer) -> None:
    layer.faults.append(status(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."))
    layer.always = says(completion("fine"))
    (answer,) = answers(connect(concurrency=1, retries=0), [ask("Hi")])
    assert answer.texts == ("fine",)
    assert layer.asked[1].body["max_completion_tokens"] == 6
    assert "max_tokens" not in layer.asked[1].body


@pytest.mark.parametrize("n", [1, 3])
def test_what_a_server_refuses_is_found_out_by_all_who_are_on_their_way(connect: Open, layer: Layer, n: int) -> None:
    """Eight have asked before the first one hears of it."""
    refusal = "Use 'max_completion_tokens' instead." if n == 1 else "n > 1 is not supported"
    layer.faults.extend([status(400, refusal)] * 8)
    layer.always = says(completion("fine"))
    found = answers(connect(concurrency=8, retries=0), [ask(f"Number {number}", n=n) for number in range(20)])
    assert [(answer.error, len(answer.texts)) for answer in found] == [(None, n)] * 20
    assert layer.asked[-1].body.get("n", 1) == 1


def test_everybody_waits_as_long_as_a_refusal_says(connect: Open, layer: Layer) -> None:
    layer.faults.append(status(429, headers={"Retry-After": "1"}))
    layer.always = says(completion("fine"))
    backend = connect(concurrency=1)
    assert all(answer.texts for answer in answers(backend, asks(3)))
    times = [asked.at for asked in layer.asked]
    assert len(times) == 4
    assert times[1] - times[0] >= 0.98
    assert backend.usage.retries == 1


def test_a_refusal_holds_other_workers_back_too(connect: Open, layer: Layer) -> None:
    layer.always = says(completion("fine"))
    layer.faults.append(status(429, headers={"Retry-After": "1"}))
    answers(connect(concurrency=4), asks(30))
    told = layer.asked[0].at
    # Those on their way already are let go; after them nobody asks before the second is over.
    assert len([asked for asked in layer.asked if asked.at < told + 0.98]) <= 30
    assert sum(told + 0.3 < asked.at < told + 0.98 for asked in layer.asked) == 0
    assert sum(asked.at >= told + 0.98 for asked in layer.asked) >= 1


def test_a_used_up_rate_limit_is_waited_for_before_it_is_broken(connect: Open, layer: Layer) -> None:
    layer.headers = [(b"x-ratelimit-remaining-requests", b"0"), (b"x-ratelimit-reset-requests", b"600ms")]
    answers(connect(concurrency=1), asks(2))
    first, second = layer.asked
    assert second.at - first.at >= 0.6


def test_a_break_of_hours_is_not_waited_for(connect: Open, layer: Layer) -> None:
    layer.faults.append(status(429, headers={"Retry-After": "7200"}))
    with pytest.raises(LLMError, match=r"asks for a break of 7200 s .* run again then"):
        answers(connect(), asks(1))


@pytest.mark.parametrize(
    "fault",
    [
        status(500),
        status(503, "overloaded"),
        status(408),
        says(b"{not JSON"),
        says(b""),
        says(b"<html>log in first</html>", kind=b"text/html"),
        says(b'{"error": "with a status of 200"}'),
        says(completion()),
        says(completion(None)),
        says(completion("")),
        says(b'{"choices": null}'),
        says(b'{"choices": [{"message": null}]}'),
        says(completion("a text that is cut in the mid"), length=4000),
    ],
    ids=[
        *("500", "503", "408", "garbage", "nothing", "page", "error-as-200", "no-choices", "null-content", "empty"),
        *("null-choices", "null-message", "cut"),
    ],
)
def test_what_goes_wrong_once_is_tried_again(connect: Open, layer: Layer, fault: Any) -> None:
    layer.faults.append(fault)
    layer.always = says(completion("fine"))
    backend = connect(concurrency=1)
    (answer,) = answers(backend, asks(1))
    assert answer.texts == ("fine",)
    assert len(layer.asked) == 2
    assert (backend.usage.requests, backend.usage.retries, backend.usage.failed) == (2, 1, 0)


def test_what_keeps_going_wrong_is_that_prompts_error(connect: Open, layer: Layer) -> None:
    layer.faults.extend([says(b"{nonsense")] * 3)
    layer.always = says(completion("fine"))
    backend = connect(concurrency=1)
    first, second = answers(backend, asks(2))
    assert first.error is not None
    assert "not a chat completion (application/json; begins '{nonsense') (3 attempts" in first.error
    assert second.texts
    assert backend.usage.failed == 1
    again = connect()
    assert all(answer.texts for answer in answers(again, asks(2)))  # an error is not kept
    assert again.usage.requests == 1


@pytest.mark.parametrize("slow", [0.0, 0.5])
def test_a_prompt_is_not_given_up_for_others_who_are_answered(connect: Open, layer: Layer, slow: float) -> None:
    """A server that answers one at a time and refuses whoever comes beside it, or of three requests answers one."""
    busy = False

    async def one_at_a_time(asked: Asked, send: Send) -> None:
        nonlocal busy
        if busy or (not slow and len(layer.asked) % 3):
            await status(429, "too many requests")(asked, send)
            return
        busy = True
        await asyncio.sleep(slow)
        busy = False
        await says(completion("fine"))(asked, send)

    layer.always = one_at_a_time
    backend = connect(concurrency=6, retries=2)
    number = 6 if slow else 15
    assert [answer.error for answer in answers(backend, asks(number))] == [None] * number
    assert backend.usage.retries > 12
    layer.always = status(429, "used up for today")
    assert "used up for today (3 attempts" in str(answers(backend, [ask("one more")])[0].error)


def test_a_slow_answer_is_given_up_and_counted_as_paid(connect: Open, layer: Layer) -> None:
    layer.faults.append(sleeps(10))
    backend = connect(concurrency=1, timeout=0.6, prompt_price=1.0, completion_price=1.0)
    layer.always = says(completion("fine", usage=(10, 5)))
    start = time.monotonic()
    (answer,) = answers(backend, asks(1))
    assert answer.texts == ("fine",)
    assert time.monotonic() - start < 7  # also on a test machine that stops for a while
    assert backend.usage.cost > 15e-6 + 6e-6  # the answer, and the most that the other may have cost


def test_a_wrong_content_type_does_not_cost_an_answer(connect: Open, layer: Layer) -> None:
    layer.faults.append(says(completion("fine"), kind=b"text/plain"))
    (answer,) = answers(connect(), asks(1))
    assert answer.texts == ("fine",)
    assert len(layer.asked) == 1


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": "many"}, (-1, -5)])
def test_tokens_that_the_server_does_not_count_are_estimated(connect: Open, layer: Layer, usage: Any) -> None:
    layer.faults.append(says(completion("x" * 30, usage=usage)))
    backend = connect(completion_price=1e6)
    (answer,) = answers(backend, asks(1))
    assert answer.texts == ("x" * 30,)
    assert backend.usage.estimated == 1
    assert backend.usage.completion_tokens == 10
    assert backend.usage.prompt_tokens > 5
    assert backend.usage.cost == pytest.approx(10)


def test_an_answer_without_text_at_its_limit_is_not_tried_again(connect: Open, layer: Layer) -> None:
    layer.faults.append(says(completion("", finish="length")))
    (answer,) = answers(connect(), asks(1))
    assert answer.error == "no text within max_tokens: a model that thinks first needs more of them"
    assert len(layer.asked) == 1


@pytest.mark.parametrize(
    "fault, message",
    [
        (status(401, f"Incorrect API key provided: {KEY}"), "SCOTER_LLM_API_KEY is set, but not accepted"),
        (status(403, "forbidden"), "refuses the key"),
        (status(402, "Insufficient Balance"), "top up the account"),
        (status(429, "You exceeded your quota", kind="insufficient_quota"), "top up the account"),
        (status(404, "no such model"), r"check teacher\.base_url and teacher\.model"),
    ],
)
def test_what_no_prompt_will_survive_ends_it_at_once(connect: Open, layer: Layer, fault: Any, message: str) -> None:
    layer.always = fault
    with pytest.raises(LLMError, match=message):
        answers(connect(concurrency=2), asks(50))
    assert len(layer.asked) <= 2


def test_a_prompt_that_is_flagged_says_nothing_against_the_key(connect: Open, layer: Layer) -> None:
    layer.always = says(completion("fine"))
    layer.faults.append(status(403, 'small requires moderation. Your input was flagged for "harassment".'))
    first, second = answers(connect(concurrency=1), asks(2))
    assert "was flagged" in str(first.error)
    assert second.texts == ("fine",)
    assert len(layer.asked) == 2


def test_a_missing_key_is_said_to_be_missing(connect: Open, layer: Layer) -> None:
    layer.always = status(401)
    with pytest.raises(LLMError, match="SCOTER_LLM_API_KEY is not set"):
        answers(connect(key=None), asks(1))


def test_a_server_that_fails_on_everything_is_given_up(
    connect: Open, layer: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FAILED_IN_A_ROW", 4)
    layer.always = status(400, "unknown parameter: top_p")
    given: list[Answer] = []
    with pytest.raises(LLMError, match=r"failed on 4 prompts in a row, on the last one .* unknown parameter: top_p;"):
        given.extend(connect(concurrency=1).answer(asks(50)))
    assert len(layer.asked) == 4
    assert all("unknown parameter: top_p" in str(answer.error) for answer in given)


def test_a_key_is_told_to_nobody_but_the_server(
    connect: Open, layer: Layer, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    layer.faults.extend([status(400, f"you sent {KEY}"), says(KEY.encode()), status(500, KEY)])
    backend = connect(concurrency=1)
    told = [str(answer) for answer in answers(backend, asks(2))]
    layer.always = status(401, f"Incorrect API key provided: {KEY}")
    with pytest.raises(LLMError) as error:
        answers(backend, asks(4)[2:])
    seen = [*told, repr(backend), repr(backend._chat), str(backend.name), repr(backend.usage), repr(error.value)]
    seen += [str(error.getrepr(showlocals=False)), caplog.text, *capfd.readouterr()]
    assert all(KEY not in text for text in seen)
    assert "***" in told[0]
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert stored
    assert KEY.encode() not in stored


def test_nobody_listening_is_said_with_the_address(connect: Open) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    backend = connect(url=url)
    with pytest.raises(LLMError, match=rf"nobody answers at {url} .*3 times: start the server, or correct"):
        answers(backend, asks(20))
    assert backend.usage.cost == 0


def test_a_server_that_dies_half_way_costs_nothing_that_was_answered(served: str, connect: Open, layer: Layer) -> None:
    prompts = asks(20, max_tokens=2)
    backend = connect(concurrency=2)
    kept: list[Answer] = []

    def read_while_it_dies() -> None:
        for answer in backend.answer(prompts):
            kept.append(answer)
            if len(kept) == 4:
                layer.stop()

    with pytest.raises(LLMError, match=r"nobody answers at .* kept in .*answers\.sqlite: run again"):
        read_while_it_dies()
    assert 4 <= len(kept) < 20
    assert all(answer.texts for answer in kept)
    alive = Layer(served, port=layer.port)
    try:
        again = connect(concurrency=2)
        whole = answers(again, prompts)
    finally:
        alive.stop()
    assert [answer.index for answer in whole] == list(range(20))
    assert all(answer in whole for answer in kept)
    assert again.usage.cached >= len(kept)
    assert len(alive.asked) == 20 - again.usage.cached


KILLED = """
import sys
from pathlib import Path
from offline.llm.cache import AnswerCache
from offline.llm.endpoint import EndpointBackend
from offline.recipe import TeacherRecipe
from tests.offline.llm.prompts import asks
recipe = TeacherRecipe(backend="endpoint", model="small", base_url=sys.argv[1], concurrency=2)
with EndpointBackend(recipe, AnswerCache(Path(sys.argv[2])), None) as backend:
    for answer in backend.answer(asks(12, max_tokens=2)):
        print(answer.index, flush=True)
"""


def test_a_killed_process_loses_at_most_what_was_in_flight(connect: Open, layer: Layer, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, layer.url, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path.cwd())
    assert process.stdout is not None
    for _ in range(4):
        assert process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    sent = len(layer.asked)
    backend = connect(concurrency=2)
    assert all(answer.texts for answer in answers(backend, asks(12, max_tokens=2)))
    assert backend.usage.cached >= max(4, sent - 2)
    assert len(layer.asked) <= 12 + 2


def test_a_budget_is_kept_and_can_be_raised(connect: Open, layer: Layer, tmp_path: Path) -> None:
    layer.always = says(completion("fine", usage=(50, 6)))
    prices = {"prompt_price": 1e4, "completion_price": 1e5}  # 0.5 + 0.6 for each of these answers
    given: list[Answer] = []
    backend = connect(budget=6.0, concurrency=4, **prices)
    with pytest.raises(LLMError, match=r"the budget is spent: .* of 6, .*Raise teacher\.budget"):
        given.extend(backend.answer(asks(50)))
    assert 3 <= len(given) <= 5
    assert backend.usage.cost == pytest.approx(1.1 * len(layer.asked))
    assert backend.usage.cost <= 6.0
    with AnswerCache(tmp_path) as cache:
        assert cache.spent == pytest.approx(backend.usage.cost)
    with pytest.raises(LLMError, match="the budget is spent"):  # a new run has not got a new budget
        answers(connect(budget=6.0, **prices), asks(50))
    asked = len(layer.asked)
    more = connect(budget=100.0, **prices)
    assert len(answers(more, asks(50))) == 50
    assert len(layer.asked) == 50
    assert more.usage.requests == 50 - asked


def test_what_was_cut_off_counts_against_the_budget(connect: Open, layer: Layer) -> None:
    layer.always = says(b"{cut")
    backend = connect(budget=4.0, prompt_price=1e4, completion_price=1e5, concurrency=1, retries=100)
    with pytest.raises(LLMError, match="the budget is spent"):
        answers(backend, asks(1))
    assert 0 < len(layer.asked) <= 4
    assert backend.usage.cost <= 4.0


def test_a_pattern_goes_out_in_the_way_that_the_server_takes_it(connect: Open, layer: Layer) -> None:
    prompt = ask("Yes or no?", pattern="(yes|no)")
    layer.always = says(completion("yes"))
    for structured in ("none", "regex"):
        assert answers(connect(structured=structured), [prompt])[0].texts == ("yes",)
    layer.always = says(completion('{"answer": "no"}'))
    assert answers(connect(structured="json"), [prompt])[0].texts == ("no",)
    plain, regex, structured_json = (asked.body for asked in layer.asked)
    assert not {"structured_outputs", "guided_regex", "response_format"} & set(plain)
    assert regex["structured_outputs"] == {"regex": "(yes|no)"}
    assert regex["guided_regex"] == "(yes|no)"
    schema = structured_json["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["answer"] == {"type": "string", "pattern": "^(?:(yes|no))$"}
    assert "JSON" in structured_json["messages"][-1]["content"]


@pytest.mark.parametrize("content", ["yes", "[1]", '{"answer": 3}', '{"other": "yes"}', '{"answer": ""}'])
def test_json_without_an_answer_is_none(connect: Open, layer: Layer, content: str) -> None:
    layer.faults.append(says(completion(content)))
    layer.always = says(completion('{"answer": "yes"}'))
    assert answers(connect(structured="json"), asks(1))[0].texts == ("yes",)
    assert len(layer.asked) == 2


@pytest.mark.parametrize(
    "content, text",
    [
        ('{"answer": "one\\ntwo \\"three\\"', 'one\ntwo "three"'),
        ('```json\n{"answer": "one\\ntwo \\', "one\ntwo "),
        ('<think>{"a": 1}</think>{ "answer" : "one \\u00e', "one "),
        ('{"answer": "one \\ud83d', "one ?"),
    ],
)
def test_json_that_was_cut_off_is_a_text_that_was_cut_off(connect: Open, layer: Layer, content: str, text: str) -> None:
    layer.always = says(completion(content, finish="length"))
    for _ in range(2):  # and it is paid for once
        assert answers(connect(structured="json"), asks(1))[0].texts == (text,)
    assert len(layer.asked) == 1


def test_json_that_was_cut_off_before_its_answer_has_none(connect: Open, layer: Layer) -> None:
    layer.always = says(completion('{"answer": "', finish="length"))
    assert "no text within max_tokens" in (answers(connect(structured="json"), asks(1))[0].error or "")


def test_line_breaks_in_json_may_be_as_they_are(connect: Open, layer: Layer) -> None:
    layer.always = says(completion('{"answer": "one\n\ttwo"}'))
    assert answers(connect(structured="json"), asks(1))[0].texts == ("one\n\ttwo",)


def test_a_text_that_is_no_json_is_not_said_to_be_none(connect: Open, layer: Layer) -> None:
    layer.always = says(completion("yes"))
    error = answers(connect(structured="json", retries=1), asks(1))[0].error
    assert error is not None
    assert error.startswith("the answer is not the JSON object that was asked for by teacher.structured (2 attempts")


def test_whoever_stops_reading_cancels_the_rest(connect: Open, layer: Layer) -> None:
    backend = connect(concurrency=2)
    reading = backend.answer(asks(50))
    next(reading)
    reading.close()  # type: ignore[attr-defined]
    time.sleep(0.5)
    asked = len(layer.asked)
    time.sleep(0.5)
    assert len(layer.asked) == asked < 20
    assert answers(backend, asks(1))[0].texts  # and it can go on


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"base_url": ""}, "is no URL"),
        ({"base_url": "localhost:8000/v1"}, "is no URL"),
        ({"base_url": "https://user:hush@host/v1"}, "a key belongs into the environment"),
        ({"base_url": "https://host/v1?api-key=hush"}, "a key belongs into the environment"),
        ({"model": ""}, r"teacher\.model is empty"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    recipe = recipe_of("http://localhost:1/v1").model_copy(update=changes)
    with AnswerCache(tmp_path) as cache, pytest.raises(RecipeError, match=message) as error:
        EndpointBackend(recipe, cache, None)
    assert "hush" not in str(error.value)


@pytest.mark.parametrize("structured, key", [("none", "1b0f91a70d22a872"), ("regex", "e7ca3d3203756b6e")])
def test_answers_that_were_paid_for_are_found_by_later_versions(tmp_path: Path, structured: str, key: str) -> None:
    prompt = ask("Yes or no?", pattern="(yes|no)", seed=5, temperature=0.7)
    recipe = recipe_of("http://localhost:1/v1", structured=structured)
    backend = EndpointBackend(recipe, AnswerCache(tmp_path), None)
    try:
        assert backend._key(prompt, 1).hex().startswith(key)
    finally:
        backend.close()


def test_a_cache_that_breaks_under_way_is_an_error_that_names_it(connect: Open, layer: Layer, tmp_path: Path) -> None:
    backend = connect(concurrency=1)
    layer.always = says(completion("fine"))
    answers(backend, asks(1))
    backend._cache._db.execute("DROP TABLE answers")
    with pytest.raises(LLMError, match=rf"cannot use the cache of answers .*{FILE}"):
        answers(backend, asks(3))


def test_the_wire_format_is_json(layer: Layer, connect: Open) -> None:
    answers(connect(), [ask('"quotes" — \u2028 \x00 and <tags>')])
    assert layer.asked[0].body["messages"][1]["content"] == '"quotes" — \u2028 \x00 and <tags>'
    assert json.dumps(layer.asked[0].body)
