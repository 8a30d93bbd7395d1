"""One chat completion over HTTP: what is sent, what may come back, and what each failure means.

The openai SDK sends and reads; it is told not to retry (`max_retries=0`), since only the caller knows the budget, the
cache and the other requests. Its exceptions, and httpx's below them, end here.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import anyio
from pydantic import BaseModel, SecretStr, ValidationError

from offline.chains.thoughts import without_thoughts
from offline.errors import AnswerError, LLMError, RecipeError
from offline.llm.base import Message, Prompt
from offline.llm.extra import llm_extra
from offline.llm.pace import asked_wait

if TYPE_CHECKING:
    from openai import APIStatusError

KEY_VARIABLE = "SCOTER_LLM_API_KEY"
CONNECT_SECONDS = 10.0
_NO_KEY = "none"  # the SDK insists on one; servers that want none ignore it
_QUOTED = 300  # characters of a server's words in an error
_BEGINNING = 80  # characters of a body that is no answer
_SEED = re.compile(r"\bseed\b")  # in a refusal: Mistral knows no field of that name
_FLAGGED = re.compile(r"\b(?:input|prompt|content)\b[^.]*\bflagged\b", re.IGNORECASE)  # as OpenRouter words a refusal
_JSON_RULE = 'Give the whole answer as one JSON object: {"answer": "..."}'
_CUT_JSON = re.compile(r'\{\s*"answer"\s*:\s*("(?:[^"\\]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*)')  # as far as it is whole
NOT_JSON = "not the JSON object that was asked for"  # an end of our own

# Ends of what was not written to its end, by no fault of the prompt: DeepSeek's, OpenRouter's and vLLM's words.
BROKEN_OFF = frozenset({"insufficient_system_resource", "error", "abort"})

Structured = Literal["none", "json", "regex"]


class Fault(Exception):
    """An attempt failed and another may succeed."""

    def __init__(
        self,
        reason: str,
        *,
        wait: float | None = None,
        charged: bool = False,
        unreachable: bool = False,
        adapted: bool = False,
        limited: bool = False,
    ) -> None:
        super().__init__(reason)
        self.wait = wait  # seconds that the server asked for
        self.charged = charged  # it may have been worked on, and be on the bill
        self.unreachable = unreachable  # nobody listens there
        self.adapted = adapted  # the next request will be put in a way that the server may know
        self.limited = limited  # the server has enough to do with others


class Refused(Exception):
    """The server will not answer this prompt, however often it is asked."""


class _Message(BaseModel):
    content: str | list[dict[str, Any]] | None = None  # a list where a model thinks first: its thoughts, then its text
    refusal: Any = None


class _Choice(BaseModel):
    message: _Message | None = None  # some leave it out where their content filter took the text
    finish_reason: str | None = None


class _Tokens(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int | None = None


class _Completion(BaseModel):
    choices: list[Any]  # each read for itself: what is wrong with one costs none of the others
    usage: Any = None


@dataclass(frozen=True, slots=True)
class Choice:
    """One text, and why it ended: `stop`, `length`, ..., `refusal` or NOT_JSON. Empty if broken off or unreadable."""

    text: str
    finish: str | None


@dataclass(frozen=True, slots=True)
class Reply:
    """What a request brought: up to n choices, tokens as the server counted them, its headers in lower case."""

    choices: tuple[Choice, ...]
    tokens: tuple[int, int] | None  # of prompt and completions; None if the server did not say
    headers: Mapping[str, str]


def key_from_environment() -> SecretStr | None:
    """The key to send, if there is one. Raises LLMError, without quoting it, if it can be in no header."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if any(not "!" <= character <= "~" for character in key):
        raise LLMError(
            f"{KEY_VARIABLE} holds more than a key, which has no spaces, line breaks or letters beyond ASCII: set it "
            "anew"
        )
    return SecretStr(key) if key else None


def checked_url(base_url: str) -> str:
    """`base_url` without a slash at its end. Raises RecipeError if it is no URL, or holds what belongs elsewhere."""
    try:
        parts = urlsplit(base_url)
        _ = parts.port
    except ValueError:  # not quoted: it may hold a password
        raise RecipeError(
            "teacher.base_url is no URL, by its port or brackets: give one such as http://localhost:8000/v1"
        ) from None
    if parts.username or parts.password or parts.query or parts.fragment:
        raise RecipeError(
            "teacher.base_url holds more than scheme, host and path: a key belongs into the environment "
            f"({KEY_VARIABLE}), as recipes are copied into outputs"
        )
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise RecipeError(f"teacher.base_url = {base_url!r} is no URL: give one such as http://localhost:8000/v1")
    return base_url.rstrip("/")


def sent_messages(messages: Sequence[Message], structured: Structured) -> list[dict[str, str]]:
    """The conversation as it goes over the wire."""
    sent = [{"role": message.role, "content": message.content} for message in messages]
    if structured == "json":
        sent[-1]["content"] += "\n\n" + _JSON_RULE
    return sent


class Chat:
    """The connection to one endpoint; safe for concurrent use in one event loop."""

    def __init__(
        self, base_url: str, model: str, key: SecretStr | None, *, structured: Structured, timeout: float
    ) -> None:
        with llm_extra():
            from openai import AsyncOpenAI, Timeout  # noqa: PLC0415 - half a second to import, in an extra
        self.base_url = checked_url(base_url)
        self._model = model
        self._key = key
        self._structured = structured
        self._timeout = timeout
        self._client = AsyncOpenAI(
            base_url=self.base_url,
            api_key=key.get_secret_value() if key else _NO_KEY,
            timeout=Timeout(timeout, connect=min(CONNECT_SECONDS, timeout)),
            max_retries=0,
        )
        self._limit = "max_tokens"  # what the server calls it; found out
        self._takes_seed = True  # found out
        self.takes_n = True  # the server gives several answers to one request; found out

    def __repr__(self) -> str:
        return f"Chat({self.base_url!r}, {self._model!r})"

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def ask(self, prompt: Prompt, *, n: int, seed: int | None) -> Reply:
        """One attempt. Raises Fault, Refused, or LLMError when no other prompt would fare better."""
        from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError  # noqa: PLC0415

        body = self._body(prompt, n, seed)
        try:
            with anyio.fail_after(self._timeout):  # over all, however the server dribbles
                response = await self._client.chat.completions.with_raw_response.create(**body)
        except (TimeoutError, APITimeoutError) as error:
            if type(error.__cause__).__name__ == "ConnectTimeout":
                raise Fault(f"no connection within {CONNECT_SECONDS:g} s", unreachable=True) from None
            raise Fault(f"no answer within {self._timeout:g} s", charged=True) from None
        except APIConnectionError as error:
            cause = error.__cause__
            said = self._clean(str(cause or error)) or "connection failed"
            if type(cause).__name__ == "ConnectError":
                raise Fault(said, unreachable=True) from None
            raise Fault(f"the answer was cut off: {said}", charged=True) from None
        except APIStatusError as error:
            raise self._judge(error, body, n * prompt.sampling.max_tokens) from None
        except APIError as error:
            raise Fault(self._clean(str(error)), charged=True) from None
        headers = {name.lower(): value for name, value in response.headers.items()}
        return self._read(response.content, headers)

    def _body(self, prompt: Prompt, n: int, seed: int | None) -> dict[str, Any]:
        sampling = prompt.sampling
        body: dict[str, Any] = {
            "model": self._model,
            "messages": sent_messages(prompt.messages, self._structured),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            self._limit: sampling.max_tokens,
        }
        if n > 1:
            body["n"] = n
        if seed is not None and self._takes_seed:
            body["seed"] = seed
        if self._structured == "json":
            text: dict[str, Any] = {"type": "string"}
            if prompt.pattern is not None:
                text["pattern"] = f"^(?:{prompt.pattern})$"
            schema = {"type": "object", "properties": {"answer": text}, "required": ["answer"]}
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "strict": True, "schema": schema | {"additionalProperties": False}},
            }
        elif self._structured == "regex" and prompt.pattern is not None:
            # vLLM from 0.11 knows the first name, older ones the second; each leaves the other alone.
            body["extra_body"] = {"structured_outputs": {"regex": prompt.pattern}, "guided_regex": prompt.pattern}
        return body

    def _judge(self, error: APIStatusError, body: Mapping[str, Any], tokens: int) -> Exception:
        """What a status of 4xx or 5xx means; the answers would have had up to so many tokens."""
        status = error.status_code
        words = _words(error.body) or error.message
        said = self._clean(words)
        where = f"{self.base_url} (model {self._model!r})"
        if status == 403 and _FLAGGED.search(words):
            return Refused(f"status {status}: {said}")
        if status in {401, 403}:
            state = "is set, but not accepted" if self._key else "is not set"
            return LLMError(f"{where} refuses the key ({status}): {KEY_VARIABLE} {state}. It says: {said}")
        if status == 402 or "insufficient_quota" in {error.code, error.type}:
            return LLMError(f"{where} wants payment ({status}): top up the account. It says: {said}")
        if status == 404:
            return LLMError(f"{where} is not there (404): check teacher.base_url and teacher.model. It says: {said}")
        if status in {400, 422}:
            # What this request held, whatever is known by now: others on their way meet the same refusal.
            if "max_completion_tokens" in words and "max_tokens" in body:
                self._limit = "max_completion_tokens"
                return Fault(said, adapted=True)
            if "seed" in body and _SEED.search(words):
                self._takes_seed = False
                return Fault(said, adapted=True)
            if "n" in body:
                self.takes_n = False
                return Fault(said, adapted=True)
        if status in {408, 409, 425, 429} or status >= 500:
            headers = {name.lower(): value for name, value in error.response.headers.items()}
            return Fault(f"status {status}: {said}", wait=asked_wait(headers, tokens), limited=status == 429)
        return Refused(f"status {status}: {said}")

    def _read(self, content: bytes, headers: Mapping[str, str]) -> Reply:
        """A body, whatever its content type says: what can be read has been paid for."""
        try:
            completion = _completion(content)
        except ValueError:
            kind = headers.get("content-type", "no content type")
            begins = self._clean(content.decode("utf-8", "replace"), _BEGINNING)
            raise Fault(f"not a chat completion ({kind}; begins {begins!r})", charged=True) from None
        choices = tuple(self._choice(choice) for choice in completion.choices)
        return Reply(choices, _counted(completion.usage, written=any(choice.text for choice in choices)), headers)

    def _choice(self, row: object) -> Choice:
        try:
            choice = _Choice.model_validate(row)
        except ValidationError:
            return Choice("", None)
        message, finish = choice.message or _Message(), choice.finish_reason
        content = message.content
        if isinstance(content, list):
            content = "".join(str(part.get("text") or "") for part in content if part.get("type") == "text")
        if not content:
            return Choice("", "refusal" if message.refusal else finish)
        if finish in BROKEN_OFF:
            return Choice("", finish)
        if self._structured != "json":
            return Choice(content, finish)
        text = _unpacked(content, cut=finish == "length")
        return Choice(text or "", NOT_JSON if text is None and finish != "length" else finish)

    def _clean(self, text: str, chars: int = _QUOTED) -> str:
        """A server's words, on one line, without the key; cut only then, as half a key is one, too.

        Where they quote a prompt that was cut they may end in half a surrogate pair, which no file could hold.
        """
        if self._key is not None:
            text = text.replace(self._key.get_secret_value(), "***")
        line = " ".join(text.encode("utf-8", "replace").decode().split())
        return line if len(line) <= chars else line[:chars] + "…"


def _completion(content: bytes) -> _Completion:
    """A body, read. Raises ValueError if it is none."""
    try:
        return _Completion.model_validate_json(content)
    except ValidationError:
        # A text that was cut at a token may end in half a surrogate pair, which is no reason to pay for it again.
        whole = json.dumps(json.loads(content), ensure_ascii=False)
        return _Completion.model_validate_json(whole.encode("utf-8", "replace"))


def _counted(usage: object, *, written: bool) -> tuple[int, int] | None:
    """Tokens of prompt and completions by the server's count; None if it did not count, as zeros say, too."""
    try:
        found = _Tokens.model_validate(usage)
    except ValidationError:
        return None
    prompt, completion = found.prompt_tokens, found.completion_tokens
    if prompt < 1 or completion < written:
        return None
    # Some have thoughts in the total alone, and bill them.
    return prompt, max(completion, (found.total_tokens or 0) - prompt)


def _unpacked(content: str, *, cut: bool) -> str | None:
    """The answer in a JSON object, with or without thoughts, code fences and the like around it; None if none is.

    Of one that was cut off, what there is of it: it has been paid for like any other text that is cut.
    """
    try:
        bare = without_thoughts(content)
    except AnswerError:
        return None
    try:
        # Not strict: models that nothing holds to JSON leave line breaks in strings as they are.
        answer = json.loads(bare[bare.find("{") : bare.rfind("}") + 1], strict=False)["answer"]
    except (ValueError, TypeError, KeyError):
        begun = _CUT_JSON.search(bare) if cut else None
        if begun is None:
            return None
        answer = json.loads(begun[1] + '"', strict=False)
    # Of an escaped surrogate pair a model may write one half, which no file could hold.
    return answer.encode("utf-8", "replace").decode() if isinstance(answer, str) else None


def _words(body: object) -> str:
    """What a server says of an error: its message, or whatever else it sent; empty if nothing."""
    said = body.get("message") or body if isinstance(body, dict) else body
    if not said:
        return ""
    return said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
