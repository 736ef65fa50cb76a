"""The policy on servers, against scripted local servers; `test_serve.py` uses a real server."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import inspect
import itertools
import json
import threading
import time
from dataclasses import dataclass

import pytest
from fastapi import Request, Response
from fastapi.responses import JSONResponse
from helpers.server_policies import PROMPT, STOP, act, policy_of, serving_all, silent
from helpers.vllm_servers import WRITTEN, Served, serving, unused_port

from retool_env.rollout import PolicyUnavailable
from retool_env.rollout.vllm.server import VLLMServerPolicy


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr("retool_env.servers.hosts._FIRST_ASIDE", 0.02)
    monkeypatch.setattr("retool_env.servers.hosts._SHORTEST_RETRY_AFTER", 0.01)


def test_ids_go_in_as_ids_and_come_out_as_ids():
    served = Served(context=300)
    with serving(served) as url, policy_of(f"{url}/v1/", temperature=0.7, top_p=0.9) as policy:
        assert policy.model == "m" and policy.context_length == 300
        [turn] = act(policy, PROMPT, seed=2**63 + 5)
    assert turn.token_ids == tuple(WRITTEN) and turn.logprobs == (-0.5,) * 3
    assert turn.stop_reason == "tag" and turn.weight_version == 0 and turn.seconds > 0
    sent = served.bodies[-1]
    assert sent["prompt"] == PROMPT and sent["stop"] == list(STOP) and sent["max_tokens"] == 24
    assert sent["temperature"] == 0.7 and sent["top_p"] == 0.9 and sent["seed"] == 5
    # What is left out, vLLM takes from the model's generation config.
    assert (sent["top_k"], sent["min_p"], sent["repetition_penalty"]) == (0, 0.0, 1.0)
    assert sent["return_token_ids"] and sent["include_stop_str_in_output"]
    assert (sent["skip_special_tokens"], sent["spaces_between_special_tokens"]) == (False, False)


def test_a_greedy_token_was_certain():
    with serving(Served()) as url, policy_of(url, temperature=0) as policy:
        assert act(policy, PROMPT)[0].logprobs == (0.0,) * 3


def test_the_turns_of_an_episode_go_to_one_server_and_episodes_to_all():
    served = [Served(delay=0.05, written=list(range(7, 27))) for _ in range(3)]

    async def episode(policy, number):
        ids = [*PROMPT, number]
        for _ in range(4):
            turn = await policy.act(ids, STOP, 24, 1)
            ids = [*ids, *turn.token_ids, 1, 2, 3]
            await asyncio.sleep(0.01 * (number % 3))

    async def episodes(policy):
        await asyncio.gather(*(episode(policy, number) for number in range(1, 13)))

    with serving_all(*served) as urls, policy_of(*urls, model="m") as policy:
        asyncio.run(episodes(policy))
    of_server = [{ids[len(PROMPT)] for ids in each.prompts} for each in served]
    assert sum(map(len, of_server)) == 12, "an episode was at several servers"
    assert all(of_server), "a server got nothing"
    assert [len(each.prompts) for each in served] == [4 * len(each) for each in of_server]


def test_a_server_that_dies_costs_its_turns_a_retry_elsewhere():
    dying, healthy = Served(delay=5), Served()
    with serving(healthy) as url, contextlib.ExitStack() as stack:
        dead = stack.enter_context(serving(dying))
        with policy_of(dead, url) as policy:

            async def turns():
                tasks = [
                    asyncio.create_task(policy.act([*PROMPT, i], STOP, 24, 1)) for i in range(8)
                ]
                while not dying.running:
                    await asyncio.sleep(0.01)
                await asyncio.to_thread(stack.close)
                return await asyncio.gather(*tasks)

            assert [turn.token_ids for turn in asyncio.run(turns())] == [tuple(WRITTEN)] * 8
    assert len(healthy.prompts) == 8 and 0 < len(dying.prompts) < 8
    assert policy.retried >= len(dying.prompts)


def test_a_failing_server_is_left_alone_for_a_while():
    bad, good = Served(failures=[JSONResponse({"error": "broken"}, 500)] * 50), Served()
    with serving_all(bad, good) as urls, policy_of(*urls) as policy:
        for number in range(10):
            act(policy, [*PROMPT, number])
    assert len(good.prompts) == 10 and 1 <= len(bad.prompts) < 8


def test_a_server_that_never_answers_keeps_nobody_waiting_and_is_told_of(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr("retool_env.rollout.vllm.client._ANSWER_SECONDS", 0.3)
    served = Served()
    with serving(served) as url, silent() as other, policy_of(other, url) as policy:
        assert [r.message for r in caplog.records] == [f"{other} is set aside: ReadTimeout"]
        policy.servers[0].aside_until = 0
        turns = act(policy, *([*PROMPT, i] for i in range(6)))
        assert len(turns) == 6 == len(served.prompts)
        policy.servers[0].aside_until = 0
        asyncio.run(policy.update_weights(1, tmp_path))
        last = caplog.records[-1].message
        assert last.startswith(f"{other} has not loaded the weights of version 1")
        assert "ReadTimeout" in last
        assert act(policy, PROMPT)[0].weight_version == 1


def test_turns_and_new_weights_may_take_longer_than_other_answers(tmp_path, monkeypatch):
    monkeypatch.setattr("retool_env.rollout.vllm.client._ANSWER_SECONDS", 0.2)
    served = Served(delay=0.5, load=lambda path: time.sleep(0.5))
    with serving(served) as url, policy_of(url, attempts=1, temperature=0.5) as policy:
        assert act(policy, PROMPT)
        asyncio.run(policy.update_weights(1, tmp_path))
        assert act(policy, PROMPT)[0].weight_version == 1
    assert not policy.servers[0].failures
    # 16,384 tokens at 43.5 ms, the slowest that is planned for here, are 713 s.
    assert inspect.signature(VLLMServerPolicy).parameters["timeout"].default > 2 * 713


def test_servers_are_asked_side_by_side_at_first():
    both = threading.Barrier(2)

    @dataclass
    class Together(Served):
        async def models(self, request: Request):
            await asyncio.to_thread(both.wait, 10)
            return await super().models(request)

    with serving_all(Together(), Together()) as urls, policy_of(*urls) as policy:
        assert all(server.heard for server in policy.servers)


def test_when_no_server_is_left_they_are_named():
    broken = Served(failures=[JSONResponse({"error": "broken"}, 500)] * 50)
    with serving(broken) as url, contextlib.ExitStack() as stack:
        dead = stack.enter_context(serving(Served()))
        with policy_of(url, dead, attempts=4) as policy:
            stack.close()
            with pytest.raises(PolicyUnavailable) as caught:
                act(policy, PROMPT)
    said = str(caught.value)
    assert url in said and "broken" in said and dead in said and "Connect" in said


def test_a_server_that_is_down_at_first_gets_turns_when_it_is_up():
    port, late = unused_port(), Served()
    with serving(Served(delay=0.1)) as url, policy_of(url, f"http://127.0.0.1:{port}") as policy:
        act(policy, *([*PROMPT, i] for i in range(4)))
        with serving(late, port):
            time.sleep(1)
            act(policy, *([*PROMPT, i] for i in range(4)))
    assert late.prompts
    with pytest.raises(PolicyUnavailable, match=str(port)):
        policy_of(f"http://127.0.0.1:{port}")


def test_a_busy_server_gets_the_turn_again_when_it_said_and_that_is_no_failure():
    busy = JSONResponse({"error": "queue full"}, 503, {"Retry-After": "0.05"})
    served = Served(failures=[busy] * 5)
    with serving(served) as url, policy_of(url, attempts=1) as policy:
        started = time.monotonic()
        assert act(policy, PROMPT)[0].token_ids == tuple(WRITTEN)
    assert len(served.prompts) == 6 and time.monotonic() - started > 0.25


def test_a_server_that_stays_busy_fails_at_last():
    busy = JSONResponse({"error": "queue full"}, 429, {"Retry-After": "0.01"})
    served = Served(failures=[busy] * 10_000)
    with (
        serving(served) as url,
        policy_of(url, attempts=2, timeout=0.2) as policy,
        pytest.raises(PolicyUnavailable, match="busy"),
    ):
        asyncio.run(asyncio.wait_for(policy.act(PROMPT, STOP, 24, 1), 20))
    assert len(served.prompts) > 2


GOOD = {
    "token_ids": WRITTEN,
    "prompt_token_ids": PROMPT,
    "logprobs": {"token_logprobs": [-0.5, -1, -0.5]},
    "finish_reason": "stop",
    "stop_reason": "</code>",
}


NO_TURNS = [
    None,
    [],
    {},
    {"choices": []},
    {"choices": None},
    {"choices": ["x"]},
    {"choices": [GOOD, GOOD]},
    {"choices": [{**GOOD, "token_ids": None, "prompt_token_ids": None}]},
    {"choices": [{**GOOD, "token_ids": None}]},
    {"choices": [{**GOOD, "token_ids": ["7", "8", "9"]}]},
    {"choices": [{**GOOD, "token_ids": [7, 8, True]}]},
    {"choices": [{**GOOD, "token_ids": [7, 8]}]},
    {"choices": [{**GOOD, "token_ids": [7, 8, -1]}]},
    {"choices": [{**GOOD, "token_ids": [7, 8, 2**31]}]},
    {"choices": [{**GOOD, "logprobs": {"token_logprobs": [-0.5, 0.5, -0.5]}}]},
    {"choices": [{**GOOD, "logprobs": {"token_logprobs": [-0.5, -(10**400), -0.5]}}]},
    {"choices": [{**GOOD, "logprobs": None}]},
    {"choices": [{**GOOD, "logprobs": {"token_logprobs": [-0.5, None, -0.5]}}]},
    {"choices": [{**GOOD, "finish_reason": None}]},
    {
        "choices": [
            {**GOOD, "token_ids": [7] * 5, "logprobs": {"token_logprobs": [-0.5] * 5}}
        ]  # for a budget of 4
    },
]


@pytest.fixture(scope="module")
def shared():
    served = Served()
    with serving(served) as url:
        yield served, url


@pytest.mark.parametrize("answer", NO_TURNS, ids=itertools.count())
def test_an_answer_that_is_no_turn_is_a_failure(answer, shared):
    served, url = shared
    served.failures = [JSONResponse(answer)]
    with policy_of(url, attempts=1) as policy:
        with pytest.raises(PolicyUnavailable, match=url):
            act(policy, PROMPT, budget=4)
        served.failures = [JSONResponse({"choices": [GOOD]})]
        assert act(policy, PROMPT, budget=4)[0].logprobs == (-0.5, -1, -0.5)


@pytest.mark.parametrize(
    ("old", "new"),
    [("-0.5", "NaN"), ("-0.5", "-Infinity"), ("-0.5", "-1e999"), ('"stop"', "[" * 200_000)],
    ids=["nan", "infinite", "too large", "deep"],
)
def test_numbers_that_are_none_and_nesting_without_end_are_failures(old, new, shared):
    served, url = shared
    text = json.dumps({"choices": [GOOD]}).replace(old, new, 1)
    served.failures = [Response(text, media_type="application/json")]
    with policy_of(url, attempts=1) as policy, pytest.raises(PolicyUnavailable, match=url):
        act(policy, PROMPT, budget=4)


@pytest.mark.parametrize("coded", [True, False])
def test_a_large_answer_and_a_compressed_one_are_failures(coded, shared):
    served, url = shared
    text = json.dumps({"choices": [GOOD], "more": "x" * (4 << 20)}).encode()
    response = Response(text, media_type="application/json")
    if coded:
        response = Response(gzip.compress(text), headers={"Content-Encoding": "gzip"})
    served.failures = [response]
    words = "the response is (encoded|larger)"
    with policy_of(url, attempts=1) as policy, pytest.raises(PolicyUnavailable, match=words):
        act(policy, PROMPT, budget=4)


@pytest.mark.parametrize("answer", [{"max_model_len": 0}, {"max_model_len": -5}, {"root": ["x"]}])
def test_a_model_that_can_be_none_is_a_failure(answer):
    model = {"id": "m", "max_model_len": 512, **answer}
    served = Served(instead={"models": {"data": [model]}})
    with (
        serving(served) as url,
        pytest.raises(PolicyUnavailable, match=f"{url}: (an invalid|the answer)"),
        policy_of(url),
    ):
        pass


@pytest.mark.parametrize("seconds", ["0", "-1", "nan"])
def test_a_server_that_is_busy_for_no_time_is_not_asked_without_end(seconds, monkeypatch):
    monkeypatch.setattr("retool_env.servers.hosts._SHORTEST_RETRY_AFTER", 0.1)
    busy = JSONResponse({"error": "queue full"}, 429, {"Retry-After": seconds})
    served = Served(failures=[busy] * 10_000)
    with (
        serving(served) as url,
        policy_of(url, attempts=2, timeout=1) as policy,
        pytest.raises(PolicyUnavailable, match="busy"),
    ):
        asyncio.run(asyncio.wait_for(policy.act(PROMPT, STOP, 24, 1), 20))
    assert 2 < len(served.prompts) < 30


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {},
        {"data": None},
        {"data": []},
        {"data": ["m"]},
        {"data": [{"max_model_len": 512}]},
        {"data": [{"id": 5, "max_model_len": 512}]},
        {"data": [{"id": "m"}]},
        {"data": [{"id": "m", "max_model_len": None}]},
    ],
    ids=str,
)
def test_a_server_that_does_not_say_what_it_serves_is_a_failure(answer, shared):
    served, url = shared
    served.instead = {"models": answer}
    with pytest.raises(PolicyUnavailable, match=url):
        policy_of(url)
    served.instead = {}


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("is_paused", None),
        ("is_paused", {}),
        ("is_paused", {"is_paused": "no"}),
        ("weight_info", []),
        ("weight_info", {"weight_version": 3}),
    ],
)
def test_a_server_that_does_not_say_which_weights_it_has_is_a_failure(path, answer, shared):
    served, url = shared
    served.instead, asked = {path: answer}, len(served.prompts)
    with policy_of(url, attempts=2) as policy:
        with pytest.raises(PolicyUnavailable, match=f"{url}.*the answer has "):
            act(policy, PROMPT)
        served.instead = {}
        assert len(served.prompts) == asked and act(policy, PROMPT)


def test_refusals_are_errors_at_once():
    with serving(Served(token="secret")) as url:
        with pytest.raises(PermissionError, match="token"):
            policy_of(url, token="wrong")
        with policy_of(url, token="secret"):
            pass
    served = Served(failures=[JSONResponse({"error": "no such parameter"}, 400)])
    with serving(served) as url, policy_of(url) as policy:
        with pytest.raises(ValueError, match="no such parameter"):
            act(policy, PROMPT)
        assert len(served.prompts) == 1
        served.echo = PROMPT[1:]
        with pytest.raises(ValueError, match="prompt_token_ids"):
            act(policy, PROMPT)
        with pytest.raises(ValueError, match="context"):
            act(policy, PROMPT, budget=500)


def test_servers_of_different_models_are_refused():
    with serving_all(Served(), Served(context=100)) as urls, pytest.raises(ValueError, match="100"):
        policy_of(*urls)
    with serving(Served()) as url, pytest.raises(ValueError, match="does not serve 'other', but m"):
        policy_of(url, model="other")


def test_a_turn_that_the_server_aborts_is_tried_again():
    served = Served(finish={"finish_reason": "abort", "stop_reason": None})
    with serving(served) as url, policy_of(url, attempts=3) as policy:
        with pytest.raises(PolicyUnavailable, match="another client of the server ended the turn"):
            act(policy, PROMPT)
        assert len(served.prompts) == 3


def test_a_cancelled_turn_ends_on_the_server_and_the_policy_goes_on():
    served = Served(delay=20)
    with serving(served) as url, policy_of(url) as policy:

        async def cancel():
            task = asyncio.create_task(policy.act(PROMPT, STOP, 24, 1))
            while not served.running:
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            async with asyncio.timeout(10):
                while served.running:
                    await asyncio.sleep(0.01)

        asyncio.run(cancel())
        assert served.gone == 1
        served.delay = 0
        assert act(policy, PROMPT)
        assert policy.servers[0].in_flight == 0


def test_logprobs_of_another_distribution_are_refused():
    raw = Served(certain=-1.2)
    with serving(raw) as url:
        for sampling in ({"temperature": 0.5}, {"top_p": 0.7}):
            with (
                policy_of(url, **sampling) as policy,
                pytest.raises(RuntimeError, match="processed"),
            ):
                act(policy, PROMPT)
        # The model's own distribution, or no distribution: there they are the same.
        for sampling in ({}, {"temperature": 0}):
            with policy_of(url, **sampling) as policy:
                assert act(policy, PROMPT)
    right = Served()
    with serving(right) as url, policy_of(url, temperature=0.5) as policy:
        act(policy, PROMPT, PROMPT)
        asked = len(right.bodies)
        act(policy, PROMPT)
    assert asked <= 4 and len(right.bodies) == asked + 1


def test_logprobs_are_checked_for_the_settings_of_an_evaluation_too():
    with serving(Served(certain=-1.2)) as url, policy_of(url) as policy:
        assert act(policy, PROMPT)
        policy.top_p = 0.7
        with pytest.raises(RuntimeError, match="processed"):
            act(policy, PROMPT)


def test_a_turn_on_a_closed_connection_is_asked_for_again_on_the_same_server():
    served = Served(cut=["turn"])
    with serving(served) as url, policy_of(url, attempts=1) as policy:
        assert act(policy, PROMPT)
        assert len(served.bodies) == 2 and not policy.servers[0].failures
        served.cut = ["turn"] * 2
        with pytest.raises(PolicyUnavailable, match="RemoteProtocolError"):
            act(policy, PROMPT)


@pytest.mark.parametrize("url", ["", "node7:8000", "ftp://node7", "http://", "http://a:b"])
def test_a_bad_url_is_refused(url):
    with pytest.raises(ValueError, match="not a URL"):
        policy_of(url)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        *(({name: value}, "must") for name, value in [("temperature", -1), ("top_p", 0)]),
        *(({name: 0}, "must") for name in ("attempts", "timeout")),
        ({"token": "secret\n"}, "token contains"),
    ],
)
def test_bad_settings_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        policy_of("http://localhost:1", **settings)


def test_a_url_that_is_there_twice_is_refused():
    with pytest.raises(ValueError, match="a server twice: http://node7:8000"):
        policy_of("http://node7:8000", "http://node8:8000", "http://node7:8000/v1/")


def test_closing_ends_a_turn_that_is_under_way_with_an_error():
    served = Served(delay=20)
    with serving(served) as url, policy_of(url) as policy:

        async def main():
            turn = asyncio.create_task(policy.act(PROMPT, STOP, 24, 1))
            while not served.running:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(policy.close)
            with pytest.raises(RuntimeError, match="closed before the work ended"):
                await turn

        asyncio.run(main())
    assert not policy.servers[0].failures


def test_a_closed_policy_says_so():
    with serving(Served()) as url, policy_of(url) as policy:
        pass
    policy.close()
    with pytest.raises(RuntimeError, match="closed"):
        act(policy, PROMPT)
