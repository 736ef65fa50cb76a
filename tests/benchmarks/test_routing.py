"""The benchmark of routing, on scripted servers."""

from __future__ import annotations

import json

import pytest
from helpers.vllm_servers import Served, serving, unused_port

from agents.models.tiny import make_checkpoint
from benchmarks import routing

METRICS = """vllm:prefix_cache_queries_total{engine="0"} %d
vllm:prefix_cache_hits_total{engine="0"} %d
"""


def test_each_way_is_measured_by_seconds_and_by_the_tokens_found_in_caches(tmp_path, capsys):
    checkpoint = make_checkpoint(tmp_path / "checkpoint", seed=0)
    served = Served(context=4096, metrics=METRICS % (100, 40))
    turns = 0

    def tell(event: str) -> None:
        nonlocal turns
        turns += event == "turn"
        served.metrics = METRICS % (100 + 10 * turns, 40 + 9 * turns)

    served.tell = tell
    out = tmp_path / "found.json"
    few = ["--problems", "2", "--rollouts", "2", "--rounds", "2", "--out", str(out)]
    with serving(served) as url:
        ways = ["--metrics", url, "--way", f"ours={url}", "--way", f"other={url}/v1"]
        assert routing.main([*ways, "--tokenizer", str(checkpoint), *few]) == 0
    found = json.loads(out.read_text())["ways"]
    assert {name: row["cached"] for name, row in found.items()} == {
        "ours": [0.9, 0.9],
        "other": [0.9, 0.9],
    }
    assert all(min(row["seconds"]) > 0 for row in found.values())
    prompts = [tuple(body["prompt"]) for body in served.bodies]
    assert len(prompts) == 2 * 2 * 2 * 2 * routing.TURNS == turns
    # A group shares a problem, and all groups of a round share the template.
    first = {prompt for prompt in prompts if len(prompt) == routing.TEMPLATE + routing.PROBLEM}
    assert len(first) == 4 * 2 and len({prompt[: routing.TEMPLATE] for prompt in first}) == 4
    assert "| other | " in capsys.readouterr().out


def test_a_wrong_way_and_servers_without_figures_are_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        routing.main(["--metrics", "http://h:1", "--way", "ours"])
    assert "--way must be NAME=URL,URL" in capsys.readouterr().err
    checkpoint = str(make_checkpoint(tmp_path / "checkpoint", seed=0))
    few = ["--tokenizer", checkpoint, "--problems", "1", "--rollouts", "1"]
    gone = f"http://127.0.0.1:{unused_port()}"
    assert routing.main(["--metrics", gone, "--way", f"ours={gone}", *few]) == 2
    assert "refused" in capsys.readouterr().err
    with serving(Served(context=4096, metrics="# none\n")) as url:
        assert routing.main(["--metrics", url, "--way", f"ours={url}", *few]) == 2
    assert "no figures of caches" in capsys.readouterr().err
