"""OpenAIPolicy: a model behind an API of OpenAI's kind, for evaluation.

Such an API takes and returns text. Its transcripts hold no token ids, so they can't be trained on;
a policy of token ids is exact, if you have the weights of the model. The module
`retool_env.rollout.openai.chat` shows the form of a conversation in each of the three ways.

The policy learns from an API's refusals which fields the API does not support. It then leaves out
the stop strings, the seed or the wish for one call at a time, and replaces `max_tokens` by
`max_completion_tokens`. None of these changes the meaning of a turn. A refused temperature or top-p
would change it, and is an error.

A turn that the API broke off, by an error or by a content filter, is not the model's own turn. Its
episode is tried again and is never scored.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, override

from retool_env.errors import MissingPackage, PolicyUnavailable, SettingsError
from retool_env.protocol.hermes import Hermes
from retool_env.protocol.program import Form
from retool_env.protocol.tags import CODE_CLOSE
from retool_env.rollout.openai.chat import call_form, call_text, completed, messages_of
from retool_env.rollout.openai.errors import (
    ERROR_CHARACTERS,
    context_is_full,
    explained,
    refused_field,
)
from retool_env.rollout.policy import TextGeneration, TextPolicy, TurnEnd, Usage, check_sampling
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
# The finish reasons of a complete turn; Together gives `eos`.
_ENDS = ("stop", "eos", "length", "tool_calls", "function_call", None)

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
        temperature: The sampling temperature; it is always sent.
        top_p: The nucleus mass of sampling; it is always sent. A server may add settings of its
            own, such as the top-k of a model's generation config in vLLM (`--generation-config
            vllm` keeps them out).
        max_tokens: The most tokens of one turn.
        concurrency: The most requests at once.
        timeout: The seconds that a whole request may take, including its answer.
        retries: The number of times that a request is sent again after the status 408, 409, 429 or
            5xx, a broken connection or a time-out. The waits grow to 8 s, or last as long as the
            API asks for.

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
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_tokens: int = 4096,
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
        self.top_p = top_p
        self._api_key = api_key
        self._tool = Hermes().tools[0] if tool is None else tool
        self._sampling = dict(temperature=temperature, top_p=top_p, max_tokens=max_tokens)
        self._most_bytes = _ANSWER_BYTES + _TOKEN_BYTES * max_tokens
        self._concurrency = concurrency
        self._timeout = timeout
        self._retries = retries
        self._refused: set[str] = set()
        self._answered = False
        self._silent = False
        self._connection: _Connection | None = None

    @override
    async def write(self, transcript: Transcript, stop: Sequence[str], seed: int) -> TextGeneration:
        """Write one turn; see `TextPolicy.write`.

        If a turn holds several native calls, the first call is the turn's. If the conversation no
        longer fits into the model's context, the turn has no text and the stop reason `"length"`.

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
        async with connection.slots:
            started = time.monotonic()
            while True:
                request = self._request(transcript, stop, seed)
                try:
                    reply, usage = await self._send(connection.client, request)
                    break
                except openai.APIError as error:
                    field = refused_field(error, request)
                    if field is not None:
                        if field not in self._refused:
                            _log.warning("%s does not support %s: left out", self.model, field)
                            self._refused.add(field)
                    elif context_is_full(error) and transcript.response:
                        return TextGeneration("", "length", time.monotonic() - started)
                    else:
                        # `from None`: the client's own error may show the key.
                        raise explained(
                            error, self.base_url, request, self._answered, self._api_key
                        ) from None
            seconds = time.monotonic() - started
        text, reason, form = self._read(reply, stop, "stop" in request)
        # A JSON escape can hold a lone surrogate, which no API accepts in a later request.
        text = text.encode("utf-8", "backslashreplace").decode()
        return TextGeneration(text, reason, seconds, form, usage)

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
                http_client=bounded_client(DefaultAsyncHttpxClient, self._most_bytes),
            )
            slots, end = asyncio.Semaphore(self._concurrency), closed_at_the_end(client.close)
            self._connection = _Connection(loop, client, slots, end)
            await anext(end)
        return self._connection

    def _request(self, transcript: Transcript, stop: Sequence[str], seed: int) -> dict[str, Any]:
        # 31 bits: some servers store a seed as a signed number of 32 bits.
        request: dict[str, Any] = {"model": self.model, **self._sampling, "seed": seed % 2**31}
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
        return {name: value for name, value in request.items() if name not in self._refused}

    async def _send(self, client: AsyncOpenAI, request: dict[str, Any]) -> tuple[Any, Usage]:
        endpoint = client.completions if self.way == "completions" else client.chat.completions
        # The client does not report that it sends a request again.
        timer = asyncio.get_running_loop().call_later(self._timeout, self._warn_of_silence)
        try:
            reply = await endpoint.create(**request)
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
        self._answered, self._silent = True, False
        usage = _usage_of(reply)
        self.usage += usage
        if self.on_usage is not None:
            self.on_usage(usage)
        choices = getattr(reply, "choices", None)
        # A proxy answers so when the server behind it failed.
        if not choices or not isinstance(choices, list):
            shown = self._shown(getattr(reply, "model_extra", reply))
            raise PolicyUnavailable(f"{self.base_url} answers without a choice: {shown}")
        return choices[0], usage

    def _shown(self, words: object) -> str:
        """The API's words, shortened and without the key."""
        return redact(str(words), self._api_key, most=ERROR_CHARACTERS)

    def _warn_of_silence(self) -> None:
        # Without retries the silence is an error; a second warning would say nothing new.
        if self._retries and not self._silent:
            self._silent = True
            text = "%s has not answered within %g s: it is asked again, up to %d times a turn"
            _log.warning(text, self.base_url, self._timeout, self._retries)

    def _read(
        self, choice: Any, stop: Sequence[str], sent: bool
    ) -> tuple[str, TurnEnd, Form | None]:
        """The text of a choice's turn, why it ended, and the form of a native call's program."""
        finish = getattr(choice, "finish_reason", None)
        if finish not in _ENDS:
            raise PolicyUnavailable(f"{self.base_url} broke the turn off: {self._shown(finish)}")
        plain = self.way == "completions"
        message: Any = getattr(choice, "message", None)
        text = getattr(choice, "text", None) if plain else _text_of(message)
        # A call that the limit on tokens cut off does not count.
        calls = None if plain or finish == "length" else getattr(message, "tool_calls", None)
        called = _called(calls) if calls else None
        if not isinstance(text, str) or (calls and called is None):
            shown = self._shown(choice)
            raise PolicyUnavailable(f"{self.base_url} answers without a turn: {shown}")
        if called is not None:
            return call_text(text, *called), "tag", call_form(text, *called)
        extra: Mapping[str, Any] = choice.model_extra or {}
        tagged = any(extra.get(name) in stop for name in ("stop_reason", "matched_stop"))
        if not plain and not text and tagged:
            apart = message.model_extra or {}
            thought = apart.get("reasoning_content") or apart.get("reasoning")
            if isinstance(thought, str) and thought:
                raise SettingsError(
                    f"{self.model} wrote a tag inside its reasoning, which {self.base_url} keeps "
                    "apart from the text: start the server without a reasoning parser, so that the "
                    "tags can be read"
                )
        return *completed(text, finish, extra, stop, sent), None


# The client does not check that the values of an answer have their declared types.
def _text_of(message: Any) -> Any:
    """The text of a message; 0 if it has no valid text.

    Mistral's reasoning models give the text in parts, beside parts that hold the reasoning.
    """
    content = getattr(message, "content", 0)
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, Mapping)]
        texts: list[Any] = [part.get("text") for part in parts if part.get("type") == "text"]
        return "".join(texts) if all(isinstance(text, str) for text in texts) else 0
    return "" if content is None else content


def _usage_of(reply: Any) -> Usage:
    """The token counts of an answer, checked."""
    used = getattr(reply, "usage", None)
    prompt: Any = getattr(used, "prompt_tokens", None)
    written: Any = getattr(used, "completion_tokens", None)
    if not (_is_count(prompt) and _is_count(written)):
        return Usage(requests=1, uncounted=1)
    cached: Any = getattr(getattr(used, "prompt_tokens_details", None), "cached_tokens", None)
    return Usage(1, prompt, written, 0, min(cached, prompt) if _is_count(cached) else 0)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _called(calls: Any) -> tuple[str, Any] | None:
    """The name and the arguments of a message's first native call, of whatever tool.

    Returns:
        `None` if the first entry is not a call.
    """
    call: Any = calls[0] if isinstance(calls, list) else None
    if not hasattr(call, "to_dict"):
        return None
    values = call.to_dict(warnings=False)
    made = values.get("function") or values.get("custom")  # the latter has free text
    made = made if isinstance(made, Mapping) else {}
    return str(made.get("name")), made.get("arguments", made.get("input"))
