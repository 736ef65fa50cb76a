"""Forks over an API: the rebuilt requests are the parent's own, byte for byte."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

import pytest

pytest.importorskip("openai", reason="pip install 'retool-env[openai]'")

from helpers.model_api import ModelAPI, Reply, serving

from retool_env.errors import SettingsError
from retool_env.problems import Problem
from retool_env.protocol.prompt import default_prompt
from retool_env.rollout import RolloutEngine
from retool_env.rollout.fork import Fork, error_arms
from retool_env.rollout.openai.policy import OpenAIPolicy
from retool_env.rules import Rules
from retool_env.sandbox import Execution, Outcome
from retool_env.transcript import read_transcripts, write_transcripts

PROBLEM = Problem(id="p", question="6 * 7?", answer="42")
WRONG = Execution(Outcome.OK, "41\n")
RULES = {
    "chat": Rules(prompt_template="Q {query}\n"),
    "completions": Rules(prompt_template="Q {query}\n"),
    "tools": Rules(prompt_template=default_prompt(interpreter=False)),
}


class Box:
    """A sandbox in which the first program fails, and every other program prints 42."""

    async def run_async(self, code, limits=None, **_):
        if code == "print(x)":
            return Execution(Outcome.RUNTIME_ERROR, "", "NameError: x", "Traceback:\nNameError: x")
        return Execution(Outcome.OK, "42\n")


def model_of(way: str, reasoning: str | None = None):
    """A model that writes a program that fails, a program that runs, and an answer."""

    def model(conversation) -> Reply:
        if way == "completions":
            turns = conversation.count("</interpreter>")
        else:
            turns = sum(message["role"] == "assistant" for message in conversation)
        code = ("print(x)", "print(6 * 7)", "")[min(turns, 2)]
        if not code:
            return Reply("<answer>42</answer>", reasoning=reasoning)
        if way == "tools":
            # The spacing and the further argument are the model's own.
            arguments = f'{{ "code":"{code}", "why": 1 }}'
            return Reply("Let me see.", (("code_interpreter", arguments),), reasoning=reasoning)
        return Reply(f"So:\n<code>\n{code}\n</code>", reasoning=reasoning)

    return model


class Kept:
    """An API and an engine over it, and the bodies of the requests since the last look."""

    def __init__(self, way: str, reasoning: str | None = None, **given: Any) -> None:
        self.api = ModelAPI(model_of(way, reasoning))
        self.way, self.given = way, given

    def __enter__(self):
        self.serving = serving(self.api)
        url = self.serving.__enter__()
        self.engine = RolloutEngine(
            OpenAIPolicy("m", url, way=self.way, **self.given), RULES[self.way], Box()
        )
        return self

    def __exit__(self, *error):
        self.serving.__exit__(*error)

    def requests(self) -> list[str]:
        """The bodies without their seeds, as JSON, and forget them."""
        bodies = [{**body, "seed": 0} for body in self.api.requests]
        self.api.requests.clear()
        return [json.dumps(body) for body in bodies]

    def parent(self):
        [[parent]] = self.engine.run([PROBLEM])
        return parent


@pytest.mark.parametrize("way", ["chat", "tools", "completions"])
def test_a_fork_sends_the_parents_own_next_request_byte_for_byte(way, tmp_path):
    with Kept(way) as kept:
        parent = kept.parent()
        own = kept.requests()
        assert len(own) == len(parent.spans) // 2 == 3 and parent.correct
        write_transcripts(tmp_path / "parents.jsonl", [parent])
        [parent] = read_transcripts(tmp_path / "parents.jsonl")  # forks go on from files
        for call in (1, 2):
            [fork] = kept.engine.fork(parent, call)
            assert kept.requests() == own[call:]
            assert fork.spans == parent.spans and not fork.parent.visible
        [fork] = kept.engine.fork(parent, 2, WRONG, arm="wrong_value")
        assert kept.requests() == [own[2].replace("42", "41")]


@pytest.mark.parametrize("way", ["chat", "tools", "completions"])
def test_the_arms_after_an_error_over_an_api(way):
    with Kept(way) as kept:
        parent = kept.parent()
        own = kept.requests()
        first = {}
        for arm in error_arms(parent, 1):
            asyncio.run(anext(kept.engine.forks([arm])))
            first[arm.arm] = kept.requests()[0]
        assert (first["drop"], first["keep"]) == (own[0], own[1])
        error = json.dumps("Traceback:\nNameError: x")[1:-1]
        assert error in own[1]
        assert first["bare"] == own[1].replace(error, "Error")
        assert first["mended"] == own[1].replace(error, "42")


def test_with_native_calls_a_fork_repeats_the_id_and_the_arguments():
    with Kept("tools") as kept:
        parent = kept.parent()
        sent = [json.loads(body) for body in kept.requests()]
        kept.engine.fork(parent, 1, WRONG)
        again = json.loads(kept.requests()[0])
    assert again["messages"][:2] == sent[1]["messages"][:2]
    [call] = again["messages"][1]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"code": "print(x)"}
    assert again["messages"][2] == {"role": "tool", "tool_call_id": call["id"], "content": "41"}


@pytest.mark.parametrize(
    ("span", "changed", "words"),
    [
        (1, {"text": "So:\n<code>\nprint(1)\n</code>"}, "message 2"),
        (2, {"text": "\n<interpreter>\n7\n</interpreter>\n"}, "message 3"),
    ],
)
def test_a_request_that_differs_is_refused_and_names_the_first_message(span, changed, words):
    with Kept("chat") as kept:
        parent = kept.parent()
        spans = list(parent.spans)
        spans[span] = dataclasses.replace(spans[span], **changed)
        kept.requests()
        with pytest.raises(SettingsError, match=f"differs.*: {words};"):
            kept.engine.fork(dataclasses.replace(parent, spans=tuple(spans)), 2, WRONG)
        assert not kept.requests()


def test_another_sampling_than_the_parents_is_refused():
    with Kept("chat", temperature=0.5) as kept:
        parent = kept.parent()
        assert kept.engine.fork(parent, 1)
    refused = pytest.raises(SettingsError, match="the model, the sampling or the tools")
    with Kept("chat", temperature=0.7) as kept, refused:
        kept.engine.fork(parent, 1)


def test_fields_that_an_api_refuses_later_do_not_count_as_a_difference():
    with Kept("chat") as kept:
        kept.api.accepts = {"model", "messages", "temperature", "top_p", "max_tokens"}
        parent = kept.parent()
    with Kept("chat") as kept:  # a new policy sends the seed and the stop strings again
        assert kept.engine.fork(parent, 1)[0].correct


def test_a_fork_of_a_model_whose_reasoning_is_kept_apart_is_marked_as_visible():
    with Kept("chat", reasoning="I think") as kept:
        parent = kept.parent()
        assert [span.apart for span in parent.spans] == [False, True, False, True, False, True]
        [fork] = kept.engine.fork(parent, 1)
        assert fork.parent.visible
        # Before the first turn there is no reasoning that the fork would miss.
        assert "I think" not in "".join(kept.requests())
        episode = kept.engine.begin(PROBLEM, Fork(parent, 1, "drop", dropped=True))
        assert not episode.transcript.parent.visible


def test_hidden_reasoning_counts_as_kept_apart():
    with Kept("chat") as kept:
        body = kept.api._body

        def counted(reply, request, chat):
            answer = body(reply, request, chat)
            answer["usage"]["completion_tokens_details"] = {"reasoning_tokens": 7}
            return answer

        kept.api._body = counted
        parent = kept.parent()
        assert kept.engine.fork(parent, 1)[0].parent.visible
