"""Seven dialects of OpenAI's API, each with its own finish reasons, refusals, errors and counts.

The texts of errors follow the APIs' public bug reports in their form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from helpers.model_api import ModelAPI, Reply, Stops, refusal


def _flat(status: int, message: str) -> Response:
    """An error in the form of SGLang: without the outer object `error`."""
    error = {"object": "error", "message": message, "type": "BadRequestError", "param": None}
    return JSONResponse({**error, "code": status}, status)


def _listed(status: int, message: str) -> Response:
    """An error in the form of Gemini: a list, with a name for the status."""
    error = {"code": status, "message": message, "status": "INVALID_ARGUMENT"}
    return JSONResponse([{"error": error}], status)


def _unknown_field(name: str) -> Response:
    """The refusal of a server that validates each body strictly."""
    words = "Extra inputs are not permitted"
    detail = [{"type": "extra_forbidden", "loc": ["body", name], "msg": words}]
    return JSONResponse({"object": "error", "message": {"detail": detail}}, 422)


@dataclass(frozen=True)
class Dialect:
    """The habits of one API."""

    stop: str | None = "stop"
    """The finish reason after a stop string."""
    own: str | None = "stop"
    """The finish reason after the model's own end."""
    call: str | None = "tool_calls"
    cut: str | None = "length"
    filtered: str = "content_filter"
    stops: Stops = "cuts"
    refused: Mapping[str, Callable[[], Response]] = field(default_factory=dict)
    """The fields that the API refuses, each with its error."""
    clash: frozenset[str] = frozenset()
    """Fields of which the API takes only one."""
    overflow: Callable[[], Response] = lambda: refusal(400, "prompt is too long")
    reasoning: str | None = None
    """The field that holds the reasoning."""
    cached: Callable[[int], dict[str, Any]] = lambda count: {}
    """The fields of cached tokens among the counts."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of an answer."""
    options: tuple[str, ...] = ()
    """The options of the command that the API needs."""
    sent: Mapping[str, Any] = field(default_factory=dict)
    """Fields that these options add to each request."""


def _unsupported(name: str) -> Response:
    words = f"Unsupported parameter: '{name}' is not supported with this model."
    return refusal(400, words, param=name, code="unsupported_parameter")


DIALECTS = {
    "openai": Dialect(  # a reasoning model
        stops="refuses",
        refused={
            name: lambda name=name: _unsupported(name)
            for name in ("stop", "max_tokens", "temperature", "top_p")
        },
        overflow=lambda: refusal(
            400,
            "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in "
            "300000 tokens. Please reduce the length of the messages.",
            code="context_length_exceeded",
            param="messages",
        ),
        cached=lambda count: {
            "prompt_tokens_details": {"cached_tokens": count, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
        more={"system_fingerprint": "fp_1"},
        options=("--no-temperature", "--no-top-p", "--api-arg", "reasoning_effort=high"),
        sent={"reasoning_effort": "high"},
    ),
    "anthropic": Dialect(  # as a gateway that passes on Anthropic's own finish reasons
        stop="stop_sequence",
        own="end_turn",
        call="tool_use",
        cut="max_tokens",
        filtered="refusal",
        clash=frozenset({"temperature", "top_p"}),
        overflow=lambda: refusal(400, "prompt is too long: 208310 tokens > 200000 maximum"),
        cached=lambda count: {"prompt_tokens_details": None},
        options=("--no-top-p", "--api-arg", 'thinking={"type": "enabled", "budget_tokens": 2000}'),
        sent={"thinking": {"type": "enabled", "budget_tokens": 2000}},
    ),
    "gemini": Dialect(
        stop="STOP",
        own="STOP",
        call="STOP",
        cut="MAX_TOKENS",
        filtered="content_filter: PROHIBITED_CONTENT",
        refused={
            name: lambda name=name: _listed(
                400, f'Invalid JSON payload received. Unknown name "{name}": Cannot find field.'
            )
            for name in ("seed", "parallel_tool_calls")
        },
        overflow=lambda: _listed(
            400,
            "The input token count (1200293) exceeds the maximum number of tokens allowed "
            "(1048576).",
        ),
    ),
    "groq": Dialect(
        refused={"seed": lambda: refusal(400, "property 'seed' is unsupported")},
        overflow=lambda: refusal(
            400,
            "Please reduce the length of the messages or completion.",
            code="context_length_exceeded",
            param="messages",
        ),
        reasoning="reasoning",
        cached=lambda count: {"queue_time": 0.01, "prompt_time": 0.02, "total_time": 0.1},
        more={"system_fingerprint": "fp_2", "x_groq": {"id": "req_1"}},
    ),
    "vllm": Dialect(
        stops="vllm",
        filtered="abort",
        overflow=lambda: refusal(
            400,
            "This model's maximum context length is 4096 tokens. However, you requested 5120 "
            "tokens (4096 in the messages, 1024 in the completion). Please reduce the length of "
            "the messages or completion.",
        ),
        reasoning="reasoning_content",
        cached=lambda count: {"prompt_tokens_details": {"cached_tokens": count}},
        options=("--api-arg", "chat_template_kwargs.enable_thinking=false"),
        sent={"chat_template_kwargs": {"enable_thinking": False}},
    ),
    "sglang": Dialect(
        stops="sglang",
        filtered="abort",
        overflow=lambda: _flat(
            400,
            "Requested token count exceeds the model's maximum context length of 4096 tokens. You "
            "requested a total of 5120 tokens: 4096 tokens from the input messages and 1024 tokens "
            "for the completion.",
        ),
        reasoning="reasoning_content",
        cached=lambda count: {"prompt_tokens_details": None},
        options=("--api-arg", "top_k=20"),
        sent={"top_k": 20},
    ),
    "unknown": Dialect(
        stop=None,
        own="finished",
        call="",
        cut=None,
        filtered="blocklist",
        refused={
            name: lambda name=name: _unknown_field(name)
            for name in ("seed", "stop", "parallel_tool_calls")
        },
        stops="refuses",
        overflow=lambda: JSONResponse(
            {
                "message": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= "
                "4097. Given: 4000 `inputs` tokens and 1024 `max_new_tokens`"
            },
            422,
        ),
        reasoning="reasoning",
        cached=lambda count: {"prompt_cache_hit_tokens": count},
    ),
}
"""The dialects by name."""

OVERFLOW = "overflow"
"""`Reply.refused` for a conversation that is longer than the model's context."""


@dataclass
class DialectAPI(ModelAPI):
    """An API that speaks a dialect.

    In any dialect a scripted `Reply.finish` is `length` or `content_filter`.
    """

    dialect: Dialect = field(default_factory=Dialect)

    async def _answer(self, request: Request, body: dict[str, Any]) -> Response:
        speaks = self.dialect
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return refusal(401, "Incorrect API key provided.", code="invalid_api_key")
        for name, answer in speaks.refused.items():
            if name in body:
                return answer()
        if len(speaks.clash & set(body)) > 1:
            both = " and ".join(f"`{name}`" for name in sorted(speaks.clash))
            return refusal(400, f"{both} cannot both be specified for this model.")
        reply = self.model(body["messages"])
        if reply.refused == OVERFLOW:
            return speaks.overflow()
        return JSONResponse(self._choice(reply, body))

    def _choice(self, reply: Reply, body: dict[str, Any]) -> dict[str, Any]:
        speaks, text = self.dialect, reply.text
        found = [(text.find(tag), tag) for tag in body.get("stop", []) if tag in text]
        calls = reply.calls if "tools" in body and not found else ()
        budget = body.get("max_tokens", body.get("max_completion_tokens"))
        written = budget if reply.finish == "length" else len(reply.text)
        finish, stopped = speaks.call if calls else speaks.own, None
        if found:
            at, stopped = min(found)
            text = text[: at + len(stopped) * (speaks.stops == "keeps")]
            finish = speaks.stop
        if reply.finish:
            finish = speaks.cut if reply.finish == "length" else speaks.filtered
        message: dict[str, Any] = {"role": "assistant"}
        if text or speaks is not DIALECTS["gemini"]:
            message["content"] = text or None
        if calls:
            message["tool_calls"] = [
                {"id": f"x{i}", "type": "function", "function": {"name": n, "arguments": a}}
                for i, (n, a) in enumerate(calls)
            ]
        if speaks.reasoning and reply.reasoning is not None:
            message[speaks.reasoning] = reply.reasoning
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "message": message}
        if speaks.stops == "vllm":
            choice["stop_reason"] = stopped
        if speaks.stops == "sglang":
            choice["matched_stop"] = stopped or 151645
        read = sum(len(str(each["content"])) for each in body["messages"])
        usage = {"prompt_tokens": read, "completion_tokens": written}
        usage |= {"total_tokens": read + written, **speaks.cached(read // 2)}
        answer = {"id": "c", "object": "chat.completion", "created": 0, "model": "m-2026"}
        return {**answer, "choices": [choice], "usage": usage, **speaks.more}
