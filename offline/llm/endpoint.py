"""Backend `endpoint`: any server that speaks OpenAI's chat completions (DeepSeek, vLLM, llama.cpp, ...).

Who does what:

- `Chat` (`chat.py`) makes one attempt and says what a failure means; the SDK below it never retries.
- `Pace` (`pace.py`) holds everybody back when the server says so, by Retry-After or by x-ratelimit headers.
- `Purse` reserves what a request may cost at worst before it is sent, so that a budget holds whatever comes back.
- `AnswerCache` (`cache.py`) keeps each answer before anybody sees it.

Identical prompts of one call are asked once. Answer number i of a prompt is kept under its number, so that asking for
more answers later, or going on after a failure in the middle, asks for the missing ones only.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil, inf
from typing import Self

import anyio
from anyio.from_thread import start_blocking_portal
from anyio.streams.memory import MemoryObjectSendStream
from pydantic import SecretStr

from offline.errors import LLMError, RecipeError
from offline.llm.base import Answer, Prompt, Usage
from offline.llm.cache import AnswerCache, request_key
from offline.llm.chat import BROKEN_OFF, NOT_JSON, Chat, Choice, Fault, Refused, Reply, sent_messages
from offline.llm.pace import Pace, backoff, spent_wait
from offline.recipe import TeacherRecipe

LONGEST_HOLD = 900.0  # seconds; a server that wants a longer break is asked again by the next run
FAILED_IN_A_ROW = 20  # prompts that never failed before, without a success between: the endpoint is taken for broken
_MESSAGE_TOKENS = 16  # that a chat template adds to a message, at most
_TOKEN_BYTES = 3  # of UTF-8, where the server does not count: English has about 4, other scripts fewer


class Purse:
    """Prices, and a budget that the worst case of everything sent stays within."""

    def __init__(self, cache: AnswerCache, recipe: TeacherRecipe) -> None:
        self._cache = cache
        self._prices = (recipe.prompt_price / 1e6, recipe.completion_price / 1e6)
        self._budget = recipe.budget or inf
        self._open = 0  # requests whose cost is not known yet
        self._settled = anyio.Event()

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Of so many tokens, without any discount."""
        return prompt_tokens * self._prices[0] + completion_tokens * self._prices[1]

    async def reserve(self, worst: float) -> None:
        """Set `worst` aside. Waits while other requests may give some back; raises LLMError when none can."""
        while not self._cache.reserve(worst, self._budget):
            if not self._open:
                raise LLMError(
                    f"the budget is spent: {self._cache.spent:.4f} of {self._budget:g}, and the next request may cost "
                    f"{worst:.4f}. Raise teacher.budget to go on; the answers so far are kept in {self._cache.path}"
                )
            await self._settled.wait()
        self._open += 1

    def settle(self, worst: float, actual: float, answers: dict[bytes, str]) -> None:
        """What was set aside cost `actual`; keep the answers that it bought."""
        try:
            self._cache.put(answers, correction=actual - worst)
        finally:  # those who wait for it are not to wait for ever
            self._open -= 1
            self._settled.set()
            self._settled = anyio.Event()


@dataclass(slots=True)
class _Question:
    """Prompts that are the same but for their n."""

    prompt: Prompt  # with the largest n
    indices: list[tuple[int, int]]  # of the prompts, and their n
    keys: list[bytes]  # of answer 0, 1, ...
    texts: dict[int, str] = field(default_factory=dict)  # by number

    def missing(self) -> list[int]:
        """Numbers of the answers that are not there yet."""
        return [number for number in range(len(self.keys)) if number not in self.texts]


class _Run:
    """What one call of `answer` knows about itself."""

    def __init__(self) -> None:
        self.stopped = anyio.Event()
        self.error: LLMError | None = None
        self.successes = 0
        self.failures = 0  # prompts that failed for the first time, since the last success
        self.asked: list[float] = []  # when the requests began that are under way

    def stop(self, error: LLMError) -> None:
        """No further request; the first error is the one to raise."""
        self.error = self.error or error
        self.stopped.set()


class EndpointBackend:
    """Asks `recipe.concurrency` questions at a time. Use as a context manager; one call of `answer` at a time."""

    def __init__(self, recipe: TeacherRecipe, cache: AnswerCache, key: SecretStr | None) -> None:
        if not recipe.model:
            raise RecipeError("teacher.model is empty: name the model that teacher.base_url serves")
        self._recipe = recipe
        self._cache = cache
        self._purse = Purse(cache, recipe)
        self._pace = Pace()
        self._chat = Chat(recipe.base_url, recipe.model, key, structured=recipe.structured, timeout=recipe.timeout)
        self._usage = Usage(model=recipe.model)
        self._portal_context = start_blocking_portal()
        self._portal = self._portal_context.__enter__()

    @property
    def name(self) -> str:
        """The model, and where it is."""
        return f"endpoint {self._recipe.model} at {self._chat.base_url}"

    @property
    def usage(self) -> Usage:
        """Counted so far."""
        return self._usage

    def __repr__(self) -> str:
        return f"EndpointBackend({self.name!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close connections and cache."""
        self._portal.call(self._chat.close)
        self._portal_context.__exit__(None, None, None)
        self._cache.close()

    def answer(self, prompts: Sequence[Prompt]) -> Iterator[Answer]:
        """As `Backend.answer`. Whoever stops reading cancels what is in flight."""
        since = time.monotonic()
        questions = self._questions(prompts)
        send, receive = anyio.create_memory_object_stream[Answer](2 * self._recipe.concurrency)
        running = self._portal.start_task_soon(self._run, questions, send)
        try:
            while True:
                try:
                    answer = self._portal.call(receive.receive)
                except anyio.EndOfStream:
                    break
                now = time.monotonic()  # whoever reads may look at the usage after each answer
                self._usage.seconds += now - since
                since = now
                yield answer
            running.result()
        finally:
            running.cancel()
            try:
                self._portal.call(receive.aclose)
            except RuntimeError:  # the backend was closed before its answers were read to the end
                receive.close()
            self._usage.seconds += time.monotonic() - since

    def _questions(self, prompts: Sequence[Prompt]) -> list[_Question]:
        questions: dict[bytes, _Question] = {}
        for index, prompt in enumerate(prompts):
            n = prompt.sampling.n
            first = self._key(prompt, 0)
            question = questions.setdefault(first, _Question(prompt, [], []))
            question.indices.append((index, n))
            if n > len(question.keys):
                question.prompt = prompt
                question.keys = [self._key(prompt, number) for number in range(n)]
        return list(questions.values())

    def _key(self, prompt: Prompt, number: int) -> bytes:
        structured, sampling = self._recipe.structured, prompt.sampling
        parts = {
            "format": 1,
            "model": self._recipe.model,
            "base_url": self._chat.base_url,
            "messages": sent_messages(prompt.messages, structured),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": sampling.seed,
            "stop": [],  # which there once was: without it, all that was paid for would be asked for again
            "structured": structured,
            "pattern": None if structured == "none" else prompt.pattern,
        }
        return request_key(parts, number)

    async def _run(self, questions: list[_Question], send: MemoryObjectSendStream[Answer]) -> None:
        run = _Run()
        pending = iter(questions)
        async with send, anyio.create_task_group() as workers:
            for _ in range(min(self._recipe.concurrency, len(questions))):
                workers.start_soon(self._work, run, pending, send)
        if run.error is not None:
            raise run.error

    async def _work(self, run: _Run, pending: Iterator[_Question], send: MemoryObjectSendStream[Answer]) -> None:
        for question in pending:
            if run.stopped.is_set():
                return
            error: str | None = None
            try:
                await self._complete(run, question)
            except LLMError as fatal:
                run.stop(fatal)
                return
            except (Fault, Refused) as failure:
                error = str(failure)
                self._usage.failed += len(question.indices)
            for index, n in question.indices:
                texts = tuple(question.texts[number] for number in range(n) if number in question.texts)
                whole = len(texts) == n
                await send.send(Answer(index, texts) if whole else Answer(index, error=error))

    async def _complete(self, run: _Run, question: _Question) -> None:
        """Fill in the question's texts, from the cache and by asking."""
        found = self._cache.get(question.keys)
        question.texts = {number: found[key] for number, key in enumerate(question.keys) if key in found}
        self._usage.cached += len(question.texts)
        while missing := question.missing():
            await self._ask(run, question, missing if self._chat.takes_n else missing[:1])

    async def _ask(self, run: _Run, question: _Question, numbers: list[int]) -> None:
        """One request until it brings an answer. Raises Fault or Refused when it does not, LLMError if none will."""
        known: int | None = None  # answers that others had got when nobody was there for the first time
        start = time.monotonic()
        attempt, split = 0, False
        tries, answered, since = 0, run.successes, start  # that count; how far all were when this one failed last
        while True:
            try:
                texts = await self._attempt(run, question, numbers)
            except Refused as refused:
                self._chat.takes_n |= split  # it was not n that the server did not like
                self._failed(run, question.prompt, refused, alone=False)
                raise
            except Fault as fault:
                if fault.adapted:
                    split = split or not self._chat.takes_n
                    numbers = numbers[:1] if split else numbers
                    continue
                known = run.successes if known is None and fault.unreachable else known
                # Refused for others who are answered: its turn will come, however many of them there are.
                crowded = fault.limited and (run.successes != answered or min(run.asked, default=inf) < since)
                tries, answered, since = 0 if crowded else tries + 1, run.successes, time.monotonic()
                if tries > self._recipe.retries:
                    made = f"{attempt + 1} attempts over {time.monotonic() - start:.0f} s"
                    self._failed(run, question.prompt, fault, alone=run.successes != known)
                    raise Fault(f"{fault} ({made})", unreachable=fault.unreachable) from None
                await self._break(run, fault, attempt)
                attempt += 1
                self._usage.retries += 1
                continue
            run.successes += 1
            run.failures = 0
            question.texts.update(texts)
            return

    async def _attempt(self, run: _Run, question: _Question, numbers: list[int]) -> dict[int, str]:
        """Reserve, send, settle. The answers by number, at least one; they are in the cache by then."""
        prompt = question.prompt
        most = self._most_prompt_tokens(prompt)
        worst = self._purse.cost(most, len(numbers) * prompt.sampling.max_tokens)
        await self._pace.turn(run.stopped)
        await self._purse.reserve(worst)
        cost, kept = worst, dict[int, str]()  # unless we learn better, it was charged in full
        try:
            if run.stopped.is_set():
                cost = 0.0
                raise run.error or AssertionError("a run stops by an error")
            self._usage.requests += 1
            seed = prompt.sampling.seed
            began = time.monotonic()
            run.asked.append(began)
            try:
                reply = await self._chat.ask(prompt, n=len(numbers), seed=None if seed is None else seed + numbers[0])
            except Fault as fault:
                cost = worst if fault.charged else 0.0
                raise
            except (Refused, LLMError):
                cost = 0.0
                raise
            finally:
                run.asked.remove(began)
            cost = self._count(prompt, reply)
            if len(reply.choices) == 1 < len(numbers):
                self._chat.takes_n = False
            # Choices that are cut short at max_tokens are answers; empty ones are none.
            texts = [choice.text for choice in reply.choices if choice.text]
            kept = dict(zip(numbers, texts, strict=False))
            if not kept:
                raise self._empty(reply.choices)
            return kept
        finally:
            answers = {question.keys[number]: text for number, text in kept.items()}
            self._purse.settle(worst, cost, answers)
            self._usage.cost += cost

    def _count(self, prompt: Prompt, reply: Reply) -> float:
        """Enter the tokens of a reply, and slow down if it says to; what it cost."""
        tokens = reply.tokens
        if tokens is None:
            self._usage.estimated += 1
            asked = sum(len(message.content.encode()) for message in prompt.messages)
            answered = sum(len(choice.text.encode()) for choice in reply.choices)
            tokens = (ceil(asked / _TOKEN_BYTES), ceil(answered / _TOKEN_BYTES))
        self._usage.prompt_tokens += tokens[0]
        self._usage.completion_tokens += tokens[1]
        wait = spent_wait(reply.headers, sum(tokens))
        if wait is not None and wait <= LONGEST_HOLD:
            self._pace.hold(wait)
        return self._purse.cost(*tokens)

    def _empty(self, choices: Sequence[Choice]) -> Exception:
        ends = {choice.finish for choice in choices}
        if ends == {"length"}:
            return Refused("no text within max_tokens: a model that thinks first needs more of them")
        if ends == {"content_filter"}:
            return Refused("withheld by the server's content filter")
        if ends == {"refusal"}:
            return Refused("the model refuses to answer")
        if ends == {NOT_JSON}:
            return Fault(f"the answer is {NOT_JSON} by teacher.structured", charged=True)
        if broken := ends & BROKEN_OFF:
            return Fault(f"the server broke the answer off ({', '.join(sorted(map(str, broken)))})", charged=True)
        return Fault("no text in the answer" if choices else "no choices in the answer", charged=True)

    async def _break(self, run: _Run, fault: Fault, attempt: int) -> None:
        """Wait before the next attempt; everybody, if the server named a time, and this one no less than without it.

        A server may round its time down to nothing, or name a moment that has passed by our clock.
        """
        if fault.wait is not None:
            if fault.wait > LONGEST_HOLD:
                raise LLMError(
                    f"{self._chat.base_url} asks for a break of {fault.wait:.0f} s ({fault}): run again then; the "
                    f"answers so far are kept in {self._cache.path}"
                )
            self._pace.hold(fault.wait)
        with anyio.move_on_after(backoff(attempt)):
            await run.stopped.wait()

    def _failed(self, run: _Run, prompt: Prompt, failure: Fault | Refused, *, alone: bool) -> None:
        """A prompt has failed for good, while others fared better or not. Raises LLMError when none will."""
        kept = f"the answers so far are kept in {self._cache.path}: run again to go on from there"
        if isinstance(failure, Fault) and failure.unreachable and not alone:
            raise LLMError(
                f"nobody answers at {self._chat.base_url} ({failure}), asked {self._recipe.retries + 1} times: "
                f"start the server, or correct teacher.base_url; {kept}"
            )
        # Whoever goes on asks those that failed again, one after another: they are no news, whatever the sampling.
        sent = sent_messages(prompt.messages, self._recipe.structured)
        prompt_key = request_key({"model": self._recipe.model, "base_url": self._chat.base_url, "messages": sent}, 0)
        run.failures += self._cache.first_failure(prompt_key)
        if run.failures >= FAILED_IN_A_ROW:
            raise LLMError(
                f"{self._chat.base_url} failed on {run.failures} prompts in a row, on the last one for this reason: "
                f"{failure}; {kept}"
            )

    @staticmethod
    def _most_prompt_tokens(prompt: Prompt) -> int:
        """A bound: no tokenizer makes more tokens than bytes."""
        return sum(len(message.content.encode()) + _MESSAGE_TOKENS for message in prompt.messages)
