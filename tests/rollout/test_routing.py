"""Which server gets a turn."""

from __future__ import annotations

from retool_env.rollout.routing import Server, cheapest

TEMPLATE = list(range(400))


def servers(count: int) -> list[Server]:
    return [Server(f"http://s{i}") for i in range(count)]


def test_a_long_history_stays_though_another_server_is_freer():
    a, b = servers(2)
    history = list(range(3000))
    b.learn(history)
    b.in_flight = 4
    assert cheapest([a, b], [*history, 5, 6]) is b
    b.in_flight = 8  # by then, reading it again costs less
    assert cheapest([a, b], [*history, 5, 6]) is a


def test_a_shared_template_does_not_draw_every_problem_to_one_server():
    all_of_them = servers(4)
    for problem in range(40):
        ids = [*TEMPLATE, *range(1000 * problem, 1000 * problem + 50)]
        chosen = cheapest(all_of_them, ids)
        chosen.learn(ids)
        chosen.in_flight += 1
    assert [each.in_flight for each in all_of_them] == [10] * 4


def test_of_equally_free_servers_the_one_that_knows_the_most_is_taken():
    a, b, c = servers(3)
    a.learn(TEMPLATE[:100])
    c.learn(TEMPLATE[:200])
    assert cheapest([a, b, c], TEMPLATE) is c
    assert cheapest([a, b, c], [5000, *TEMPLATE]) is a  # known in another place is not known


def test_what_a_server_should_hold_is_bounded_and_the_latest_is_kept(monkeypatch):
    monkeypatch.setattr("retool_env.rollout.routing._MOST_BLOCKS", 100)
    [server] = servers(1)
    for start in range(0, 100_000, 1000):
        server.learn(range(start, start + 160))
    assert len(server.blocks) == 100
    other = Server("http://other")
    assert cheapest([other, server], range(99_000, 99_160)) is server
    assert cheapest([other, server], range(0, 160)) is other
