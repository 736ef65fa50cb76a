"""Sticky routing: the choice of the server for each turn."""

from __future__ import annotations

import time

import numpy as np

from retool_env.rollout.vllm.routing import Server, best
from retool_env.servers.hosts import Failure

TEMPLATE = list(range(400))


def servers(count: int) -> list[Server]:
    return [Server(f"http://s{i}") for i in range(count)]


def test_an_episode_stays_where_its_last_turn_was_sampled_whatever_else_is_in_flight_there():
    a, b = servers(2)
    prompt = list(range(100))
    a.learn(prompt)
    turn = [*prompt, *range(500, 540)]
    b.learn(turn, 40)
    b.in_flight = 100
    assert best([a, b], [*turn, *range(900, 960)]) is b
    b.learn([*turn, *range(900, 960)])
    assert best([a, b], [*turn, *range(900, 960)]) is b  # sent once more: it was busy
    assert best([a, b], [*prompt, *range(600, 640)]) is a  # another episode's, of the same prompt
    assert best([a], [*turn, 5, 6]) is a  # the other one is set aside
    a.learn([*turn, *range(900, 960), *range(500, 540)], 40)
    assert best([b, a], [*turn, *range(900, 960), *range(500, 545)]) is a  # it has moved


def test_a_turn_too_short_to_tell_its_episode_from_others_binds_no_other_to_its_server():
    a, b = servers(2)
    prompt = list(range(100))  # six blocks and four tokens
    b.learn([*prompt, 7, 8], 2)
    b.in_flight = 10
    assert best([a, b], [*prompt, 1000]) is a
    b.learn([5, 6], 2)
    assert best([a, b], [5, 6, 7]) is a


def test_nothing_is_read_twice_while_turns_in_flight_fluctuate():
    """128 episodes on two servers: about 64 turns at each server, a number that fluctuates."""
    chance = np.random.default_rng(0)
    both = servers(2)
    fresh = iter(range(10_000, 10_000_000))
    episodes = [[*TEMPLATE, *(next(fresh) for _ in range(100))] for _ in range(128)]
    homes: dict[int, set[str]] = {}
    running: list[tuple[int, Server]] = []
    most = 0
    for _ in range(2000):
        if running and chance.random() < 0.5:
            episode, server = running.pop(chance.integers(len(running)))
            server.in_flight -= 1
            length = int(chance.integers(20, 300))
            episodes[episode] += (next(fresh) for _ in range(length))
            server.learn(episodes[episode], length)
            episodes[episode] += (next(fresh) for _ in range(50))
        busy = {episode for episode, _ in running}
        if free := [episode for episode in range(128) if episode not in busy]:
            episode = free[chance.integers(len(free))]
            server = best(both, episodes[episode])
            server.in_flight += 1
            server.learn(episodes[episode])
            running.append((episode, server))
            homes.setdefault(episode, set()).add(server.url)
        most = max(most, abs(both[0].in_flight - both[1].in_flight))
    assert len(homes) == 128 and all(len(each) == 1 for each in homes.values())
    assert 3 < most < 40


def test_of_a_prompt_what_is_known_is_weighed_against_the_turns_in_flight():
    a, b = servers(2)
    prompt = list(range(3000))
    b.learn(prompt)
    b.in_flight = 4
    assert best([a, b], prompt) is b
    b.in_flight = 8  # by then, reading it again costs less
    assert best([a, b], prompt) is a


def test_a_shared_template_does_not_draw_every_problem_to_one_server():
    all_of_them = servers(4)
    for problem in range(40):
        ids = [*TEMPLATE, *range(1000 * problem, 1000 * problem + 50)]
        chosen = best(all_of_them, ids)
        chosen.learn(ids)
        chosen.in_flight += 1
    assert [each.in_flight for each in all_of_them] == [10] * 4


def test_of_equally_free_servers_the_one_that_knows_the_most_is_taken():
    a, b, c = servers(3)
    a.learn(TEMPLATE[:100])
    c.learn(TEMPLATE[:200])
    assert best([a, b, c], TEMPLATE) is c
    assert best([a, b, c], [5000, *TEMPLATE]) is a  # known in another place is not known


def test_what_a_server_should_hold_is_bounded_and_the_latest_is_kept(monkeypatch):
    monkeypatch.setattr("retool_env.rollout.vllm.routing._MOST_BLOCKS", 100)
    [server] = servers(1)
    for start in range(0, 100_000, 1000):
        server.learn(range(start, start + 160))
    assert len(server.blocks) == 100
    other = Server("http://other")
    assert best([other, server], range(99_000, 99_160)) is server
    assert best([other, server], range(0, 160)) is other


def test_a_server_that_fails_may_have_lost_all_and_a_streak_is_said_once(monkeypatch, caplog):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    server = Server("http://a", weights="default")
    server.learn(TEMPLATE)
    for number in range(3):
        server.fail(now, Failure(f"broken {number}"))
        server.fail(now, Failure("sent together with the other"))
        assert server.failures == number + 1 and server.failure == f"broken {number}"
        assert server.weights is None and not server.blocks
        now = server.aside_until
    [record] = caplog.records
    assert record.message == "http://a is set aside: broken 0"
