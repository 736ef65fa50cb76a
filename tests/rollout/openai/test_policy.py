"""The policy against a local API, over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("openai", reason="pip install 'retool-env[openai]'")

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from helpers.model_api import ModelAPI, Reply, busy, refusal, serving

from retool_env.episode import Episode
from retool_env.problems import Problem
from retool_env.protocol.prompt import default_prompt
from retool_env.protocol.tags import closing_tags
from retool_env.rollout import PolicyUnavailable, RolloutEngine
from retool_env.rollout.openai.policy import OpenAIPolicy, Usage
from retool_env.rules import Rules
from retool_env.sandbox import Execution, Outcome
from retool_env.transcript import StopReason, Transcript, read_transcripts, write_transcripts

RULES = Rules(prompt_template="Q {query}\n")
TOOLS = Rules(prompt_template=default_prompt(interpreter=False))
PROBLEM = Problem(id="p", question="6 * 7?", answer="42")
STOP = closing_tags(True)
CALL = ("code_interpreter", '{"code": "print(6 * 7)"}')


class Box:
    """A sandbox in which every program prints 42."""

    def __init__(self):
        self.ran = []

    async def run_async(self, code, limits=None, **_):
        self.ran.append(code)
        return Execution(Outcome.OK, "42\n")


def seen(conversation) -> str:
    """Join all texts that were shown to the model."""
    if isinstance(conversation, str):
        return conversation
    return "".join(message["content"] or "" for message in conversation)


def solver(conversation) -> Reply:
    """Run the product, then answer with the result. Without a stop string the reply goes on."""
    if "\n42\n" in seen(conversation):
        return Reply("It is\n<answer>42</answer> and that's it. <code>no</code>")
    return Reply("So:\n<code>\nprint(6 * 7)\n</code>\n<interpreter>\n41\n</interpreter> Hm.")


def caller(conversation) -> Reply:
    """Solve with native calls, two in one reply."""
    if conversation[-1]["role"] == "tool":
        return Reply("<answer>42</answer>")
    return Reply("Let me see.", (CALL, ("code_interpreter", '{"code": "print(1)"}')))


class Switch:
    """One server for all tests, which passes requests to the API of the current test."""

    def __init__(self):
        self.url = ""
        self.api: ModelAPI | None = None

    async def __call__(self, request: Request) -> Response:
        return await self.api(request)


SWITCH = Switch()


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    with serving(SWITCH) as SWITCH.url:
        yield


@contextlib.contextmanager
def policy_of(model, **api: Any) -> Iterator[tuple[ModelAPI, Any]]:
    """An API, and a function that makes policies for it."""
    SWITCH.api = ModelAPI(model, **api)
    yield SWITCH.api, lambda **given: OpenAIPolicy("m", SWITCH.url, **{"retries": 2, **given})
    SWITCH.api = None


def play(policy, rules: Rules = RULES, sandbox=None, n: int = 1) -> list[Transcript]:
    return RolloutEngine(policy, rules, sandbox or Box()).run([PROBLEM], n)[0]


def write(policy, rules: Rules = RULES, transcript: Transcript | None = None, seed: int = 0):
    transcript = transcript or Episode(PROBLEM, rules).transcript
    return asyncio.run(policy.write(transcript, closing_tags(rules.interpreter), seed))


# --- tags ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stops", ["cuts", "vllm", "sglang", "keeps", "ignores", "refuses"])
@pytest.mark.parametrize("way", ["chat", "completions"])
def test_an_episode_is_the_same_whatever_an_api_does_with_stop_strings(way, stops):
    with policy_of(solver, stops=stops) as (api, make):
        [transcript] = play(make(way=way))
    assert transcript.text == (
        "Q 6 * 7?\nSo:\n<code>\nprint(6 * 7)\n</code>\n<interpreter>\n42\n</interpreter>\n\n"
        "It is\n<answer>42</answer>"
    )
    assert transcript.correct and transcript.calls[0].program == "print(6 * 7)"
    assert all(span.seconds > 0 for span in transcript.spans if span.author == "model")
    assert "stop" in api.requests[0] and ("stop" in api.requests[-1]) == (stops != "refuses")
    shown = transcript.text[: -len("It is\n<answer>42</answer>")]
    if way == "completions":
        assert api.requests[-1]["prompt"] == shown  # verbatim
    else:
        roles = [message["role"] for message in api.requests[-1]["messages"]]
        assert roles == ["user", "assistant", "user"]
        assert seen(api.requests[-1]["messages"]) == shown


def test_what_a_request_holds():
    with policy_of(solver, key="secret") as (api, make):
        policy = make(api_key="secret", temperature=0.5, top_p=0.7, max_tokens=99)
        write(policy, seed=2**63 + 5)
        write(policy, Rules(interpreter=False))
    first, second = api.requests
    assert first == {
        "model": "m",
        "messages": [{"role": "user", "content": "Q 6 * 7?\n"}],
        "temperature": 0.5,
        "top_p": 0.7,
        "max_tokens": 99,
        "stop": ["</code>", "</answer>"],
        "seed": 5,  # whatever the engine's: 32 bits, signed, are what some servers hold
    }
    assert second["stop"] == ["</answer>"] and "tools" not in second


def test_a_turn_that_the_model_ends_inside_a_block():
    """Only an API that names its stop string can show that the model ended the turn by itself."""
    for stops, expected in (
        ("vllm", "eos"),
        ("sglang", "eos"),
        ("refuses", "eos"),
        ("cuts", "tag"),
    ):
        with policy_of(lambda _: Reply("<code>print(1)"), stops=stops) as (_, make):
            turn = write(make())
        assert (turn.stop_reason, turn.text.endswith("</code>")) == (expected, expected == "tag")


def test_a_turn_cut_by_its_length_ends_the_episode_for_that_reason():
    with policy_of(lambda _: Reply("<code>print(", finish="length")) as (_, make):
        [transcript] = play(make())
    assert transcript.stop_reason is StopReason.TOKEN_BUDGET
    assert transcript.response_text == "<code>print(" and not transcript.calls


@pytest.mark.parametrize(
    "message", ["This model's maximum context length is 4096 tokens.", "prompt is too long"]
)
def test_a_conversation_that_fills_the_context_is_cut_and_a_prompt_that_does_is_refused(message):
    with policy_of(solver) as (api, make):
        api.failures = [refusal(400, message, code="context_length_exceeded")]
        with pytest.raises(ValueError, match=message):
            play(make())

        def full(conversation):
            api.failures = [refusal(400, message)]
            return solver(conversation)

        api.model = full
        [transcript] = play(make())
    assert transcript.stop_reason is StopReason.TOKEN_BUDGET and len(transcript.calls) == 1


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 500 tokens. However, you requested 505 tokens "
        "(405 in the messages, 100 in the completion). Please reduce the length of the messages "
        "or completion.",
        "'max_tokens' or 'max_completion_tokens' is too large: 100. This model's maximum context "
        "length is 500 tokens and your request has 405 input tokens (100 > 500 - 405).",
    ],
)
def test_a_turn_for_which_the_context_has_no_room_is_shorter(message):
    with policy_of(solver, renamed=True) as (api, make):
        policy = make(max_tokens=100)
        play(policy)
        seen_before = len(api.requests)
        api.failures = [refusal(400, message)]
        assert play(policy)[0].correct
    limits = [request["max_completion_tokens"] for request in api.requests[seen_before:]]
    assert limits == [100, 95, 100]  # the second turn has all of it again


def test_a_turn_is_shortened_once():
    message = (
        "maximum context length is 500 tokens. However, you requested 505 tokens "
        "(405 in the messages, 100 in the completion)"
    )
    with policy_of(solver) as (api, make):

        def full(conversation):
            api.failures = [refusal(400, message)] * 9
            return solver(conversation)

        api.model = full
        [transcript] = play(make())
    assert transcript.stop_reason is StopReason.TOKEN_BUDGET and len(api.requests) == 3


def test_text_that_no_request_can_hold_is_escaped():
    with policy_of(solver) as (api, make):
        surrogate = (
            b'{"choices": [{"finish_reason": "stop", "message": {"content": "\\ud800<code>1"}}]}'
        )
        api.failures = [Response(surrogate, media_type="application/json")]
        turn = write(make())
    turn.text.encode()
    assert turn.text == "\\ud800<code>1</code>"


# --- native calls -------------------------------------------------------------------------------


def test_an_episode_with_native_calls_of_which_the_first_is_run():
    box = Box()
    with policy_of(caller) as (api, make):
        policy = make(way="tools")
        [transcript] = play(policy, TOOLS, box)
    assert box.ran == ["print(6 * 7)"] and transcript.correct
    assert [span.author for span in transcript.spans] == ["prompt", "model", "env", "model"]
    assert transcript.spans[1].text == (
        "Let me see.\n<code>\n```python\nprint(6 * 7)\n```\n</code>"
    )
    first, second = api.requests
    assert first["parallel_tool_calls"] is False
    [tool] = first["tools"]
    assert tool["function"]["name"] == "code_interpreter"
    assert tool["function"]["parameters"]["required"] == ["code"]
    _, said, result = second["messages"]
    assert said["content"] == "Let me see." and len(said["tool_calls"]) == 1
    assert json.loads(said["tool_calls"][0]["function"]["arguments"]) == {"code": "print(6 * 7)"}
    assert result == {"role": "tool", "tool_call_id": said["tool_calls"][0]["id"], "content": "42"}


@pytest.mark.parametrize(
    ("arguments", "form"),
    [
        ({"code": "print(6 * 7)"}, "plain"),
        ('{"code": "print(6 * 7)\n"}', "plain"),
        (json.dumps(json.dumps({"code": "print(6 * 7)"})), "plain"),
        ({"code": "```python\nprint(6 * 7)\n```"}, "fenced"),
        ({"code": ">>> print(6 * 7)\n42"}, "mended:prompts"),
        ({"code": "    print(6 * 7)"}, "mended:dedent"),
        ({"source": "print(6 * 7)"}, "unread"),
    ],
)
def test_the_record_says_how_the_program_of_a_native_call_was_read(arguments, form):
    function = {"name": "code_interpreter", "arguments": arguments}
    message = {
        "content": None,
        "tool_calls": [{"id": "a", "type": "function", "function": function}],
    }
    body = {"choices": [{"finish_reason": "tool_calls", "message": message}]}
    box = Box()
    with policy_of(lambda _: Reply("<answer>42</answer>")) as (api, make):
        api.failures = [JSONResponse(body)]
        [transcript] = play(make(way="tools"), TOOLS, box)
    [call] = transcript.calls
    assert call.form == form and call.ok == (form != "unread")
    assert box.ran == ["print(6 * 7)"] * call.ok


@pytest.mark.parametrize(
    "call",
    [
        ("code_interpreter", '{"code": "print('),
        ("code_interpreter", '{"source": "1"}'),
        ("browser", "{}"),
    ],
)
def test_a_malformed_call_is_a_failed_one_that_never_reaches_the_sandbox(call):
    def model(conversation):
        if conversation[-1]["role"] != "tool":
            return Reply("", (call,))
        assert "SyntaxError" in conversation[-1]["content"]
        assert call[0] in conversation[-2]["tool_calls"][0]["function"]["arguments"]
        return Reply("<answer>42</answer>")

    box = Box()
    with policy_of(model) as (_, make):
        [transcript] = play(make(way="tools"), TOOLS, box)
    assert not box.ran and transcript.correct
    assert [c.execution.outcome for c in transcript.calls] == [Outcome.SYNTAX_ERROR]


@pytest.mark.parametrize(
    ("call", "written"),
    [
        ({"type": "custom", "custom": {"name": "python", "input": "1"}}, "python(1)"),
        ({"type": "browser", "browser": {"url": "x"}}, "None(None)"),
        ({"type": "function", "function": None}, "None(None)"),
        ({"type": "function", "function": "x"}, "None(None)"),
    ],
)
def test_a_call_of_another_type_is_a_failed_one(call, written):
    message = {"content": "Hm.", "tool_calls": [{"id": "a", **call}]}
    body = {"choices": [{"finish_reason": "tool_calls", "message": message}]}
    box = Box()
    with policy_of(lambda _: Reply("<answer>42</answer>")) as (api, make):
        api.failures = [JSONResponse(body)]
        [transcript] = play(make(way="tools"), TOOLS, box)
    assert not box.ran and transcript.correct
    assert [c.execution.outcome for c in transcript.calls] == [Outcome.SYNTAX_ERROR]
    assert (
        transcript.response_text.startswith("Hm.\n<code>") and written in transcript.response_text
    )


def test_a_call_that_was_cut_by_its_length_is_none():
    reply = Reply("Let me see.", (("code_interpreter", '{"code": "pri'),), finish="length")
    with policy_of(lambda _: reply) as (_, make):
        [transcript] = play(make(way="tools"), TOOLS)
    assert transcript.response_text == "Let me see."
    assert transcript.stop_reason is StopReason.TOKEN_BUDGET and not transcript.calls


def test_a_program_that_is_written_as_text_is_run_all_the_same():
    with policy_of(solver, stops="cuts") as (api, make):
        api.model = lambda c: solver(c) if len(c) == 1 else Reply("<answer>42</answer>")
        [transcript] = play(make(way="tools"), TOOLS)
    assert transcript.correct and len(transcript.calls) == 1
    assert [m["role"] for m in api.requests[1]["messages"]] == ["user", "assistant", "tool"]


def test_without_an_interpreter_there_is_no_tool():
    with policy_of(lambda _: Reply("<answer>42</answer>", (CALL,))) as (api, make):
        [transcript] = play(make(way="tools"), Rules(interpreter=False))
    assert transcript.correct and "tools" not in api.requests[0]


def test_native_calls_in_another_protocol_are_refused():
    with policy_of(caller) as (api, make), pytest.raises(ValueError, match='protocol="tags"'):
        play(make(way="tools"), Rules(protocol="hermes"))
    assert not api.requests


def test_a_tag_inside_a_reasoning_that_is_kept_apart_is_an_error_that_says_what_to_do():
    reply = Reply("</code>", reasoning="<code>print(1)")
    parser = pytest.raises(ValueError, match="without a reasoning parser")
    with policy_of(lambda _: reply, stops="vllm") as (_, make), parser:
        write(make())
    with policy_of(lambda _: Reply("<answer>1</answer>", reasoning="hm <code>x</code>")) as (
        _,
        make,
    ):
        assert write(make()).text == "<answer>1</answer>"


# --- what an API refuses ------------------------------------------------------------------------


def test_fields_that_an_api_does_not_take_are_left_out(caplog):
    accepts = {"model", "messages", "temperature", "top_p", "max_tokens", "tools", "stop"}
    left_out = []
    with policy_of(caller, accepts=accepts) as (api, make):
        policy = make(way="tools")
        policy.on_left_out = left_out.append
        assert all(transcript.correct for transcript in play(policy, TOOLS, n=6))
    assert set(api.requests[-1]) == accepts
    warnings = [r.message for r in caplog.records if "left out" in r.message]
    assert sorted(warnings) == [
        "m does not support parallel_tool_calls: left out",
        "m does not support seed: left out",
    ]
    assert sorted(left_out) == ["parallel_tool_calls", "seed"]


def test_a_field_that_is_named_by_no_text_is_looked_for_in_the_words():
    with policy_of(solver) as (api, make):
        api.failures = [refusal(400, "Unsupported parameter: stop", param=["stop"])]
        assert play(make())[0].correct
    assert "stop" in api.requests[0] and "stop" not in api.requests[1]


def test_the_limit_on_tokens_goes_by_the_name_that_the_api_wants():
    with policy_of(solver, renamed=True, stops="refuses") as (api, make):
        assert play(make(max_tokens=77))[0].correct
    last = api.requests[-1]
    assert last["max_completion_tokens"] == 77 and not {"max_tokens", "stop"} & set(last)


@pytest.mark.parametrize(
    ("failure", "error", "words"),
    [
        (refusal(404, "no such model"), ValueError, "not serve the model 'm'.*no such model"),
        (refusal(403, "not for you"), PermissionError, "the key, or needs one: not for you"),
        (refusal(429, "quota", code="insufficient_quota"), PermissionError, "quota"),
        (refusal(402, "pay first"), ValueError, "pay first"),
        (
            refusal(400, "'temperature' does not support 0.5", param="temperature"),
            ValueError,
            "0.5",
        ),
        (refusal(400, "max_tokens is too large", param="max_tokens"), ValueError, "too large"),
        (refusal(400, "unknown: 'stop' works", param="temperature"), ValueError, "'stop' works"),
        (JSONResponse("odd", 400), ValueError, "odd"),
    ],
)
def test_what_no_retry_can_mend_ends_the_run_at_once(failure, error, words):
    with policy_of(solver) as (api, make):
        api.failures = [failure] * 9
        with pytest.raises(error, match=words):
            play(make(retries=0))
        assert len(api.requests) == 1


def test_a_wrong_key_and_a_wrong_model():
    with policy_of(solver, key="right") as (api, make):
        for key in ("wrong", None):
            with pytest.raises(PermissionError, match="refuses the key, or needs one") as caught:
                play(make(api_key=key))
            assert "wrong" not in str(caught.value)
        assert api.authorizations == ["Bearer wrong", "Bearer none"]
        policy = OpenAIPolicy("other", make().base_url, "right")
        with pytest.raises(ValueError, match=r"not serve the model 'other'.*/models lists"):
            play(policy)


def test_an_address_that_is_no_api():
    with policy_of(solver) as (_, make):
        url = make().base_url.removesuffix("/v1")
        with pytest.raises(ValueError, match=r"not an API of OpenAI's kind.*/v1.*<html>"):
            play(OpenAIPolicy("m", url))


# --- further fields -----------------------------------------------------------------------------


def test_fields_may_be_left_out_and_added():
    extra = {
        "reasoning_effort": "high",
        "chat_template_kwargs": {"enable_thinking": False},
        "seed": None,
        "stop": None,
    }
    with policy_of(solver) as (api, make):
        policy = make(temperature=None, top_p=None, extra=extra, max_tokens=9)
        assert play(policy)[0].correct
    assert api.requests[0] == {
        "model": "m",
        "messages": [{"role": "user", "content": "Q 6 * 7?\n"}],
        "max_tokens": 9,
        "reasoning_effort": "high",
        "chat_template_kwargs": {"enable_thinking": False},
    }


def test_the_other_name_of_the_limit_on_tokens_takes_its_place():
    with policy_of(solver) as (api, make):
        write(make(extra={"max_completion_tokens": 50, "seed": 7}))
    assert api.requests[0]["max_completion_tokens"] == 50 and api.requests[0]["seed"] == 7
    assert "max_tokens" not in api.requests[0]


@pytest.mark.parametrize("finish", ["FINISHED", "", None])
def test_a_turn_that_ends_for_an_unknown_reason_ends_by_its_text(finish, caplog):
    texts = ["So <code>print(6 * 7)", "It is <answer>42"]
    bodies = [{"choices": [{"finish_reason": finish, "message": {"content": t}}]} for t in texts]
    with policy_of(solver) as (api, make):
        api.failures = [JSONResponse(body) for body in bodies * 2]
        policy = make()
        assert all(play(policy)[0].correct for _ in range(2))
    said = [r.getMessage() for r in caplog.records if "unknown reason" in r.getMessage()]
    assert len(said) == (finish == "FINISHED")


def test_a_turn_without_a_reason_that_fills_the_budget_is_cut():
    usage = {"prompt_tokens": 1, "completion_tokens": 9}
    body = {"choices": [{"finish_reason": None, "message": {"content": "So"}}], "usage": usage}
    with policy_of(solver) as (api, make):
        api.failures = [JSONResponse(body), JSONResponse(body)]
        assert write(make(max_tokens=9)).stop_reason == "length"
        assert write(make(max_tokens=10)).stop_reason == "eos"


def test_a_call_in_the_older_form_is_a_call():
    called = {"name": CALL[0], "arguments": CALL[1]}
    message = {"content": None, "function_call": called}
    body = {"choices": [{"finish_reason": "function_call", "message": message}]}
    with policy_of(lambda _: Reply("<answer>42</answer>")) as (api, make):
        api.failures = [JSONResponse(body)]
        [transcript] = play(make(way="tools"), TOOLS)
    assert transcript.correct and transcript.calls[0].program == "print(6 * 7)"


def test_an_answer_in_the_reasoning_alone_is_counted_and_said_once(caplog):
    reply = Reply("", reasoning="It is <answer>42</answer>.")
    with policy_of(lambda _: reply) as (_, make):
        policy = make()
        assert not any(transcript.correct for transcript in play(policy, n=3))
    assert policy.usage.in_reasoning == 3
    assert "in 3 answers a tag or a call stands in the reasoning alone" in str(policy.usage)
    said = [r.getMessage() for r in caplog.records if "in its reasoning alone" in r.getMessage()]
    assert len(said) == 1


def test_what_answers_call_their_model_is_handed_over_once():
    names = []
    with policy_of(solver) as (_, make):
        policy = make()
        policy.on_answered_as = names.append
        play(policy, n=2)
    assert [(each.model, each.system_fingerprint) for each in names] == [("m", None)]


# --- failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_a_busy_api_is_asked_again(status):
    with policy_of(solver) as (api, make):
        api.failures = [busy(status), busy(status)]
        policy = make()
        assert play(policy)[0].correct
        assert len(api.requests) == 4 and policy.usage.requests == 2
        assert api.requests[0] == api.requests[1] == api.requests[2]
        api.failures = [busy(status)]
        with pytest.raises(PolicyUnavailable, match="too many requests"):
            write(make(retries=0))


def test_an_api_that_stays_down_costs_its_episodes_and_not_the_run():
    with policy_of(solver) as (api, make):
        policy = make()
        assert play(policy)[0].correct
        api.failures = [busy(503)] * 100
        with pytest.raises(PolicyUnavailable, match="too many requests"):
            write(policy)
        assert len(api.requests) == 2 + 3
        [transcript] = play(policy)
    assert transcript.stop_reason is StopReason.INFRASTRUCTURE and transcript.reward is None


def test_a_server_that_goes_away():
    with serving(ModelAPI(solver)) as url:
        policy = OpenAIPolicy("m", url, retries=1)
        assert play(policy)[0].correct
    with pytest.raises(PolicyUnavailable, match="Connection error"):
        write(policy)


def test_a_server_that_was_never_there():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    policy = OpenAIPolicy("m", f"http://127.0.0.1:{port}/v1", retries=1)
    with pytest.raises(ConnectionError, match=f"127.0.0.1:{port}/v1 can't be reached"):
        play(policy)


def test_of_a_server_that_was_never_there_is_said_at_once_and_it_is_given_up_soon(
    monkeypatch, caplog
):
    base = "openai._base_client.BaseClient._calculate_retry_timeout"
    monkeypatch.setattr(base, lambda *given: 0.0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    policy = OpenAIPolicy("m", f"http://127.0.0.1:{port}/v1", retries=8)
    failed = []
    warn = policy._warn_of_no_connection
    policy._warn_of_no_connection = lambda error: (failed.append(error), warn(error))
    with pytest.raises(ConnectionError, match="can't be reached"):
        write(policy)
    assert len(failed) == 5
    [line] = [r.message for r in caplog.records if "can't be reached" in r.message]
    assert line.startswith(policy.base_url) and line.endswith("trying again")


def test_a_server_that_has_answered_is_waited_for(monkeypatch, caplog):
    base = "openai._base_client.BaseClient._calculate_retry_timeout"
    monkeypatch.setattr(base, lambda *given: 0.0)
    failed = []
    with serving(ModelAPI(solver)) as url:
        policy = OpenAIPolicy("m", url, retries=8)
        warn = policy._warn_of_no_connection
        policy._warn_of_no_connection = lambda error: (failed.append(error), warn(error))
        warn(OSError("an earlier outage"))
        assert play(policy)[0].correct and not failed
    with pytest.raises(PolicyUnavailable, match="Connection error"):
        write(policy)
    assert len(failed) == 9
    # Once in each outage.
    assert sum("trying again" in record.message for record in caplog.records) == 2


def test_a_request_that_takes_too_long_is_given_up():
    with policy_of(solver) as (api, make):
        policy = make(timeout=0.3, retries=1)
        assert play(policy)[0].correct
        api.delay = 30
        with pytest.raises(PolicyUnavailable, match="timed out"):
            write(policy)
    assert len(api.requests) == 4


def test_of_an_api_that_answers_nothing_is_said_later():
    made = []

    async def main():
        loop = asyncio.get_running_loop()
        call_later = loop.call_later

        def noted(delay, *call):
            made.append((delay, call_later(delay, *call)))
            return made[-1][1]

        loop.call_later = noted
        return await policy.write(Episode(PROBLEM, RULES).transcript, STOP, 0)

    with policy_of(solver) as (_, make):
        policy = make(timeout=77.0)
        assert asyncio.run(main()).text
    [timer] = [timer for delay, timer in made if delay == 77]
    assert timer.cancelled()


@pytest.mark.parametrize("retries", [0, 1])
def test_that_an_api_does_not_answer_is_said_at_the_first_time_out(retries, caplog):
    with policy_of(solver, delay=30) as (_, make):
        policy = make(timeout=0.3, retries=retries)
        transcripts = [Episode(PROBLEM, RULES).transcript] * 3

        async def turns():
            work = (policy.write(each, STOP, 0) for each in transcripts)
            return await asyncio.gather(*work, return_exceptions=True)

        assert all(
            isinstance(error, PolicyUnavailable | ConnectionError) for error in asyncio.run(turns())
        )
    said = [r.message for r in caplog.records if r.name == "retool_env.rollout.openai.policy"]
    words = "/v1 has not answered within 0.3 s: it is asked again, up to 1 times a turn"
    assert len(said) == retries and all(text.endswith(words) for text in said)


@pytest.mark.parametrize(
    "body", [b'{"error": {"message": "upstream is gone"}}', b'{"choices": []}', b"[]", b'{"choi']
)
def test_an_answer_that_is_none_is_a_failure(body):
    def answer() -> Response:
        return Response(body, media_type="application/json")

    with policy_of(solver) as (api, make):
        api.failures = [answer()]
        policy = make()
        with pytest.raises(PolicyUnavailable, match=r"upstream is gone|answers with"):
            write(policy)
        api.failures = [answer()]
        assert play(policy)[0].correct  # the engine's second attempt


NO_TURNS = [
    {"choices": [{"finish_reason": "stop"}]},
    {"choices": [{"finish_reason": "stop", "message": None, "text": None}]},
    {"choices": [{"finish_reason": "stop", "message": "x", "text": ["x"]}]},
    {"choices": [{"finish_reason": "length", "message": {"content": 5}, "text": 5}]},
    {"choices": [{"finish_reason": "length", "message": {"content": {"a": 1}}, "text": {"a": 1}}]},
    {"choices": ["x"]},
    {"choices": "x"},
    {"choices": {"message": {}}},
]


@pytest.mark.parametrize("body", NO_TURNS, ids=str)
@pytest.mark.parametrize("way", ["chat", "tools", "completions"])
def test_an_answer_without_a_turn_is_a_failure(way, body):
    with policy_of(solver) as (api, make):
        api.failures = [JSONResponse(body)]
        with pytest.raises(PolicyUnavailable, match=r"answers without a (turn|choice): "):
            write(make(way=way))


@pytest.mark.parametrize("usage", ["x", {"prompt_tokens": "9", "completion_tokens": "1"}, [1]])
def test_figures_that_are_none_are_not_counted(usage):
    body = {"choices": [{"finish_reason": "stop", "message": {"content": "hm"}}], "usage": usage}
    with policy_of(solver) as (api, make):
        api.failures = [JSONResponse(body)]
        policy = make()
        assert write(policy).text == "hm"
    assert policy.usage == Usage(requests=1, uncounted=1)


def test_a_message_in_parts():
    content = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "<answer>1</answer>"}]},
        {"type": "text", "text": "It is <answer>"},
        "and no part at all",
        {"type": "text", "text": "42"},
    ]
    body = {"choices": [{"finish_reason": "stop", "message": {"content": content}}], "usage": {}}
    with policy_of(solver) as (api, make):
        api.failures = [JSONResponse(body)]
        policy = make()
        assert write(policy).text == "It is <answer>42</answer>"
    assert policy.usage == Usage(requests=1, uncounted=1)


@pytest.mark.some(4)
@pytest.mark.parametrize("finish", ["abort", "error", "content_filter"])
@pytest.mark.parametrize("way", ["chat", "tools", "completions"])
def test_a_turn_that_the_api_broke_off_is_tried_again_and_never_scored(way, finish):
    replies = [Reply("So", finish=finish), Reply("<answer>42</answer>")]
    with policy_of(lambda _: replies.pop(0)) as (api, make):
        assert play(make(way=way))[0].correct and len(api.requests) == 2
        api.model = lambda _: Reply("So", finish=finish)
        with pytest.raises(PolicyUnavailable, match=f"broke the turn off: {finish}"):
            write(make(way=way))
        [transcript] = play(make(way=way))
    assert transcript.stop_reason is StopReason.INFRASTRUCTURE and transcript.reward is None


# --- many at once -------------------------------------------------------------------------------


def test_requests_at_once_are_bounded():
    with policy_of(solver, delay=0.04) as (api, make):
        assert all(transcript.correct for transcript in play(make(concurrency=3), n=12))
    assert api.most == 3 and len(api.requests) == 24


def test_cancelling_a_turn_ends_its_request():
    with policy_of(solver, delay=30) as (api, make):

        async def drive():
            task = asyncio.create_task(make().write(Episode(PROBLEM, RULES).transcript, STOP, 0))
            while not api.running:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while not api.gone:
                await asyncio.sleep(0.01)

        asyncio.run(asyncio.wait_for(drive(), 20))
        assert api.gone == 1 and not api.running


@pytest.mark.filterwarnings("error")
def test_one_policy_in_several_runs_leaves_nothing_behind(caplog):
    """Each run has an event loop of its own, and a connection belongs to one loop."""
    with warnings.catch_warnings(action="ignore"):
        gc.collect()  # what earlier tests of this process have left
    with policy_of(solver) as (_, make):
        policy = make(concurrency=2)
        for _ in range(3):
            assert all(transcript.correct for transcript in play(policy, n=6))
        gc.collect()  # an open socket warns when it is collected, and the warning fails the test
    assert not caplog.records and policy.usage.requests == 36


# --- the record ---------------------------------------------------------------------------------


def test_tokens_are_summed_over_all_turns():
    with policy_of(solver) as (api, make):
        policy = make()
        assert str(policy.usage) == "0 requests, 0 tokens in, 0 out"
        play(policy, n=2)
        usage = policy.usage
        assert usage.requests == 4 and usage.uncounted == 0
        assert usage.prompt_tokens == sum(len(json.dumps(r["messages"])) for r in api.requests)
        turns = "So:\n<code>\nprint(6 * 7)\n", "It is\n<answer>42"
        assert usage.completion_tokens == 2 * sum(map(len, turns))
        api.usage = False
        play(policy)
        assert policy.usage == Usage(6, usage.prompt_tokens, usage.completion_tokens, 2)
        assert str(policy.usage).endswith("(2 answers came without figures)")


def test_transcripts_without_ids_say_that_they_can_not_be_trained_on(tmp_path):
    trl = pytest.importorskip("retool_env.integrations.trl", reason="the trainers need trl")
    with policy_of(solver) as (_, make):
        transcripts = play(make(), n=2)
    write_transcripts(tmp_path / "t.jsonl", transcripts)
    read = list(read_transcripts(tmp_path / "t.jsonl"))
    assert read == transcripts
    for each in (transcripts, read):
        with pytest.raises(ValueError, match=r"no token ids .*can't be trained on"):
            trl.training_rows(each, [0])


# --- the constructor ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"base_url": "localhost:8000"}, "'localhost:8000' is not a URL of an API"),
        ({"base_url": "http://"}, "'http://' is not a URL"),
        ({"api_key": "sk-1\n"}, "api_key contains"),
        ({"way": "responses"}, "chat, tools, completions"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"concurrency": 0}, "concurrency"),
        ({"timeout": 0}, "timeout"),
        ({"retries": -1}, "retries"),
    ],
)
def test_wrong_settings_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        OpenAIPolicy(**{"model": "m", "base_url": "http://localhost:1/v1", **wrong})


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r"pip install 'retool-env\[openai\]'"):
        OpenAIPolicy("m", "http://localhost:1/v1")


def test_the_module_alone_imports_no_client():
    heavy = {"openai", "httpx", "httpx2", "torch"}
    code = f"import sys, retool_env.rollout.openai; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
