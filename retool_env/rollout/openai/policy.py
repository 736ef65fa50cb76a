"""OpenAIPolicy: a model behind an API of OpenAI's kind, for evaluation.

Such an API takes and returns text. Its transcripts hold no token ids, so they can't be trained on;
a policy of token ids is exact, if you have the weights of the model. The module
`retool_env.rollout.openai.chat` shows the form of a conversation in each of the three ways.

The policy learns from an API's refusals which fields the API does not support. It then leaves out
the stop strings, the seed or the wish for one call at a time, and replaces `max_tokens` by
`max_completion_tokens`. None of these changes the meaning of a turn. A refused temperature or top-p
would change it, and is an error. If the conversation and the limit on tokens exceed the model's
context together, the turn is asked for again with as many tokens as there is room for.

A turn that the API broke off, by an error or by a content filter, is not the model's own turn. Its
episode is tried again and is never scored.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, override

from retool_env.errors import MissingPackage, PolicyUnavailable, SettingsError
from retool_env.protocol.hermes import Hermes
from retool_env.protocol.program import Form
from retool_env.protocol.tags import CODE_CLOSE
from retool_env.rollout.openai.answers import (
    answered_as,
    called,
    calls_of,
    first_choice,
    reasoning_of,
    reasons_apart,
    stands_in_reasoning,
    text_of,
    usage_of,
)
from retool_env.rollout.openai.chat import call_form, call_text, completed, digest, messages_of
from retool_env.rollout.openai.ends import guessed_end, named_end
from retool_env.rollout.openai.errors import (
    ERROR_CHARACTERS,
    api_message,
    context_is_full,
    explained,
    refused_field,
    room_in_context,
    too_long,
)
from retool_env.rollout.openai.extra import check_extra
from retool_env.rollout.policy import (
    AnsweredAs,
    TextGeneration,
    TextPolicy,
    TurnEnd,
    Usage,
    check_sampling,
)
from retool_env.servers.address import check_key, check_url, redact
from retool_env.servers.background import closed_at_the_end
from retool_env.servers.bounded import bounded_client
from retool_env.transcript import Transcript

if TYPE_CHECKING:
    from openai import AsyncOpenAI

Way = Literal["chat", "tools", "completions"]
"""The form of a conversation; see `OpenAIPolicy`."""

_CONNECT_SECONDS = 10.0
# The most bytes of an answer: a fixed part, and a part for each of its tokens.
_ANSWER_BYTES, _TOKEN_BYTES = 1 << 20, 1 << 10
# The fields that `extra` may leave out or set otherwise.
_OPEN = ("seed", "stop", "parallel_tool_calls")
_VARYING = (*_OPEN, "messages", "prompt", "max_tokens", "max_completion_tokens")
_FINISH_CHARACTERS = 40
_FIRST_RETRIES = 4
"""The most retries until an API answers for the first time: its address may be wrong."""
_MOST_NAMES = 100
"""The most distinct names of its model that are kept of an API."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Connection:
    loop: asyncio.AbstractEventLoop
    client: AsyncOpenAI
    slots: asyncio.Semaphore
    end: AsyncIterator[None]
    """Closes the client when its loop ends."""


class OpenAIPolicy(TextPolicy):
    """A policy of text over HTTP.

    Args:
        model: The name of the model at the API.
        base_url: The address of the API, for example `https://api.openai.com/v1` or
            `http://localhost:8000/v1`.
        api_key: The key of the API. `None`: no key; most servers of your own need none.
        way: The form of the conversation. `"chat"`: messages that hold the tags. `"tools"`: native
            calls of a tool; the prompt should then not teach the tags
            (`retool_env.protocol.default_prompt(interpreter=False)`). `"completions"`: the endpoint
            that continues a text verbatim, without a chat template, for base models.
        tool: The JSON schema of the tool. `None`: the tool for programs without a session and a
            display.
        temperature: The sampling temperature. `None`: the field is left out.
        top_p: The nucleus mass of sampling. `None`: the field is left out. A server may add
            settings of its own, such as the top-k of a model's generation config in vLLM
            (`--generation-config vllm` keeps them out).
        max_tokens: The most tokens of one turn.
        extra: Further fields of each request, for example `{"reasoning_effort": "high"}`.
            `max_completion_tokens` takes the place of `max_tokens`. The value `None` for `seed`,
            `stop` or `parallel_tool_calls` leaves that field out.
        concurrency: The most requests at once.
        timeout: The seconds that a whole request may take, including its answer.
        retries: The number of times that a request is sent again after the status 408, 409, 429 or
            5xx, a broken connection or a time-out. The waits grow to 8 s, or last as long as the
            API asks for. Until the API answers for the first time, it is at most 4.

    Raises:
        MissingPackage: If the package openai is missing.
        SettingsError: If a setting is out of range, the address is not a URL, or the key can't be
            sent.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        api_key: str | None = None,
        *,
        way: Way = "chat",
        tool: Mapping[str, Any] | None = None,
        temperature: float | None = 1.0,
        top_p: float | None = 1.0,
        max_tokens: int = 4096,
        extra: Mapping[str, Any] | None = None,
        concurrency: int = 32,
        timeout: float = 600.0,
        retries: int = 8,
    ) -> None:
        try:
            import openai  # noqa: F401  (a missing package is reported here, not at the first turn)
        except ImportError as error:
            raise MissingPackage(f"{error}: pip install 'retool-env[openai]'") from error
        check_url(base_url, "an API", "http://localhost:8000/v1")
        check_key(api_key, "api_key")
        if way not in get_args(Way):
            raise SettingsError(f"way must be one of {', '.join(get_args(Way))}, not {way!r}")
        check_sampling(temperature, top_p)
        extra = check_extra(extra or {}, api_key)
        renamed = "max_completion_tokens" in extra
        max_tokens = extra.pop("max_completion_tokens", max_tokens)
        if max_tokens < 1 or concurrency < 1 or retries < 0 or not timeout > 0:
            raise SettingsError(
                "max_tokens, concurrency and timeout must be positive, and retries not negative: "
                f"{max_tokens}, {concurrency}, {timeout}, {retries}"
            )
        self.model = model
        self.base_url = base_url.rstrip("/")
        self.way = way
        self.usage: Usage = Usage()
        self.temperature = temperature
        self.top_p = 1.0 if top_p is None else top_p  # the contract has a number
        self._api_key = api_key
        self._tool = Hermes().tools[0] if tool is None else tool
        sampling = dict(temperature=temperature, top_p=top_p, max_tokens=max_tokens)
        self._sampling = {name: value for name, value in sampling.items() if value is not None}
        self._budget = max_tokens
        self._open = {name: extra.pop(name) for name in _OPEN if name in extra}
        self._extra = extra
        self._most_bytes = _ANSWER_BYTES + _TOKEN_BYTES * max_tokens
        self._concurrency = concurrency
        self._timeout = timeout
        self._retries = retries
        self._refused = {"max_tokens"} if renamed else set[str]()
        self._warned: set[str] = set()
        self._names: set[AnsweredAs] = set()
        self._reached = False
        self._answered = False
        self._silent = False
        self._connection: _Connection | None = None

    @override
    async def write(self, transcript: Transcript, stop: Sequence[str], seed: int) -> TextGeneration:
        """Write one turn; see `TextPolicy.write`.

        If a turn holds several native calls, the first call is the turn's. If the conversation no
        longer fits into the model's context, the turn has no text and the stop reason `"length"`.
        If it fits, but not with `max_tokens` of the turn, the turn is shorter.

        Raises:
            PolicyUnavailable: If the API still fails after all retries, or broke the turn off.
            APIUnreachable: If the API could not be reached even once.
            APIForbidden: If the API refuses the key.
            RequestRefused: If the API refuses this prompt or the sampling settings.
            SettingsError: If the API does not serve the model or keeps a reasoning with tags apart,
                or if native calls would be recorded in a protocol other than `tags`.
        """
        import openai

        if self.way == "tools" and transcript.protocol != "tags":
            raise SettingsError(
                "native calls are recorded as tags, which the "
                f"{transcript.protocol} protocol does not read: "
                'set protocol="tags", or choose another way than "tools"'
            )
        connection = await self._connect()
        room = None  # tokens of the turn, where the context has no room for `max_tokens`
        async with connection.slots:
            started = time.monotonic()
            while True:
                request = self._request(transcript, stop, seed, room)
                try:
                    choice, usage, apart = await self._send(connection.client, request, stop)
                    break
                except openai.APIError as error:
                    self._reached |= isinstance(error, openai.APIStatusError)
                    field = refused_field(error, request)
                    if field is not None:
                        self._leave_out(field)
                    elif room is None and (room := room_in_context(error)) is not None:
                        pass
                    elif context_is_full(error):
                        if transcript.response:
                            return TextGeneration("", "length", time.monotonic() - started)
                        words = api_message(error, self._api_key)
                        raise too_long(self.base_url, transcript.problem.id, words) from None
                    else:
                        # `from None`: the client's own error may show the key.
                        raise explained(
                            error, self.base_url, request, self._answered, self._api_key
                        ) from None
            seconds = time.monotonic() - started
        written = None if usage.uncounted else usage.completion_tokens
        text, reason, form = self._read(choice, stop, request, written)
        # A JSON escape can hold a lone surrogate, which no API accepts in a later request.
        text = text.encode("utf-8", "backslashreplace").decode()
        sent = self._digests(request, transcript)
        return TextGeneration(text, reason, seconds, form, usage, sent, apart)

    @override
    def digests(self, transcript: Transcript, stop: Sequence[str]) -> tuple[str, ...]:
        """The digests of the request for the next turn; see `TextPolicy.digests`."""
        return self._digests(self._request(transcript, stop, 0, None), transcript)

    def _digests(self, request: Mapping[str, Any], transcript: Transcript) -> tuple[str, ...]:
        # An API may refuse the fields of `_VARYING`, which the policy leaves out from then on.
        settings = {name: value for name, value in request.items() if name not in _VARYING}
        texts = [span.text for span in transcript.spans]  # of a completion: joined, its prompt
        parts = [settings | self._extra, *request.get("messages", texts)]
        return tuple(map(digest, parts))

    async def _connect(self) -> _Connection:
        """The client of the running event loop.

        Each run has a loop of its own, and connections belong to one loop.
        """
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient, Timeout

        loop = asyncio.get_running_loop()
        if self._connection is None or self._connection.loop is not loop:
            client = AsyncOpenAI(
                # The client needs a key; servers without keys ignore it.
                api_key=self._api_key or "none",
                base_url=self.base_url,
                timeout=Timeout(self._timeout, connect=_CONNECT_SECONDS),
                max_retries=self._retries,
                http_client=bounded_client(
                    DefaultAsyncHttpxClient, self._most_bytes, self._warn_of_no_connection
                ),
            )
            slots, end = asyncio.Semaphore(self._concurrency), closed_at_the_end(client.close)
            self._connection = _Connection(loop, client, slots, end)
            await anext(end)
        return self._connection

    def _request(
        self, transcript: Transcript, stop: Sequence[str], seed: int, room: int | None
    ) -> dict[str, Any]:
        """The fields of a request.

        Args:
            transcript: The conversation so far.
            stop: The closing tags.
            seed: The seed of the turn.
            room: The most tokens of the turn; `None`: `max_tokens`.
        """
        # 31 bits: some servers store a seed as a signed number of 32 bits.
        request: dict[str, Any] = {"model": self.model, **self._sampling, "seed": seed % 2**31}
        if room is not None:
            request["max_tokens"] = min(room, self._budget)
        if stop:
            request["stop"] = list(stop)
        if self.way == "completions":
            request["prompt"] = transcript.text
        else:
            native = self.way == "tools" and CODE_CLOSE in stop
            request["messages"] = messages_of(transcript, native)
            if native:
                request |= {"tools": [self._tool], "parallel_tool_calls": False}
        if "max_tokens" in self._refused:
            request["max_completion_tokens"] = request["max_tokens"]
        left_out = {name for name, value in self._open.items() if value is None} | self._refused
        request |= {name: value for name, value in self._open.items() if name in request}
        return {name: value for name, value in request.items() if name not in left_out}

    async def _send(
        self, client: AsyncOpenAI, request: dict[str, Any], stop: Sequence[str]
    ) -> tuple[Any, Usage, bool]:
        """Send a request.

        Returns:
            The first choice of the answer, its tokens, and whether a reasoning was kept apart.
        """
        if not self._reached:
            client = client.with_options(max_retries=min(self._retries, _FIRST_RETRIES))
        endpoint = client.completions if self.way == "completions" else client.chat.completions
        # The client does not report that it sends a request again.
        timer = asyncio.get_running_loop().call_later(self._timeout, self._warn_of_silence)
        try:
            reply = await endpoint.create(**request, extra_body=self._extra or None)
        except (ValueError, RecursionError) as error:  # not UTF-8, or too long a number or nesting
            shown = self._shown(error)
            raise PolicyUnavailable(f"{self.base_url} answers with broken JSON: {shown}") from None
        finally:
            timer.cancel()
        if isinstance(reply, str):
            raise SettingsError(
                f"{self.base_url} is not an API of OpenAI's kind (the URL of an API mostly ends in "
                f"/v1); it answers: {self._shown(reply)!r}"
            )
        self._reached, self._answered, self._silent = True, True, False
        self._warned.discard("connection")
        usage, choice = usage_of(reply), first_choice(reply)
        if choice is not None and stands_in_reasoning(choice, stop):
            usage = dataclasses.replace(usage, in_reasoning=1)
            text = (
                "%s wrote an answer or a call in its reasoning alone, which %s keeps apart from "
                "the text: it does not count (start the server without a reasoning parser, or ask "
                "for the answer outside of the reasoning)"
            )
            self._warn_once("reasoning", text, self.model, self.base_url)
        self.usage += usage
        if self.on_usage is not None:
            self.on_usage(usage)
        names = answered_as(reply, self._api_key)
        if names is not None and names not in self._names and len(self._names) < _MOST_NAMES:
            self._names.add(names)
            if self.on_answered_as is not None:
                self.on_answered_as(names)
        if choice is None:
            shown = self._shown(getattr(reply, "model_extra", reply))
            raise PolicyUnavailable(f"{self.base_url} answers without a choice: {shown}")
        return choice, usage, reasons_apart(reply, getattr(choice, "message", None))

    def _leave_out(self, field: str) -> None:
        if field not in self._refused:
            _log.warning("%s does not support %s: left out", self.model, field)
            self._refused.add(field)
            if self.on_left_out is not None:
                self.on_left_out(field)

    def _warn_once(self, what: str, text: str, *values: object) -> None:
        if what not in self._warned:
            self._warned.add(what)
            _log.warning(text, *values)

    def _shown(self, words: object) -> str:
        """The API's words, shortened and without the key."""
        return redact(str(words), self._api_key, most=ERROR_CHARACTERS)

    def _warn_of_no_connection(self, error: Exception) -> None:
        if self._retries:  # without retries it is an error at once
            text = "%s can't be reached (%s): trying again"
            self._warn_once("connection", text, self.base_url, self._shown(error))

    def _warn_of_silence(self) -> None:
        # Without retries the silence is an error; a second warning would say nothing new.
        if self._retries and not self._silent:
            self._silent = True
            text = "%s has not answered within %g s: it is asked again, up to %d times a turn"
            _log.warning(text, self.base_url, self._timeout, self._retries)

    def _read(
        self, choice: Any, stop: Sequence[str], request: Mapping[str, Any], written: int | None
    ) -> tuple[str, TurnEnd, Form | None]:
        """The text of a choice's turn, why it ended, and the form of a native call's program.

        Args:
            choice: The choice.
            stop: The closing tags.
            request: The fields of the request.
            written: The tokens of the turn; `None` where the API does not count them.
        """
        finish = getattr(choice, "finish_reason", None)
        end = named_end(finish)
        if end == "broken":
            raise PolicyUnavailable(f"{self.base_url} broke the turn off: {self._shown(finish)}")
        plain = self.way == "completions"
        message: Any = getattr(choice, "message", None)
        text = getattr(choice, "text", None) if plain else text_of(message)
        # A call that the limit on tokens cut off does not count.
        calls = None if plain or end == "cut" else calls_of(message)
        call = called(calls) if calls else None
        if not isinstance(text, str) or (calls and call is None):
            shown = self._shown(choice)
            raise PolicyUnavailable(f"{self.base_url} answers without a turn: {shown}")
        if call is not None:
            return call_text(text, *call), "tag", call_form(text, *call)
        if end is None:
            most = request.get("max_tokens", request.get("max_completion_tokens", self._budget))
            end = guessed_end(text, written, most, stop)
            if finish:
                name = self._shown(finish)[:_FINISH_CHARACTERS]
                text_ = "%s ends a turn for the unknown reason %r: taken for %s"
                what = "cut by its length" if end == "cut" else "complete"
                self._warn_once(f"finish {name}", text_, self.base_url, name, what)
        extra: Mapping[str, Any] = choice.model_extra or {}
        tagged = any(extra.get(name) in stop for name in ("stop_reason", "matched_stop"))
        if not plain and not text and tagged and reasoning_of(message):
            raise SettingsError(
                f"{self.model} wrote a tag inside its reasoning, which {self.base_url} keeps "
                "apart from the text: start the server without a reasoning parser, so that the "
                "tags can be read"
            )
        return *completed(text, end, extra, stop, "stop" in request), None
