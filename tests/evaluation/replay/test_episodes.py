"""Episodes of a run are replayed in their order, by their rules."""

import pytest
from helpers.recorded_runs import code, played, write_eval

from retool_env.errors import SettingsError
from retool_env.evaluation.replay.episodes import recorded_episodes, replay
from retool_env.evaluation.runs import open_run
from retool_env.rules import Rules
from retool_env.transcript import write_transcripts

RULES = Rules(session=True)


@pytest.fixture(scope="module")
def transcripts(sandbox):
    turns = [code("a = 42"), code("print(a)"), "<answer>42</answer>"]
    return [played(sandbox, *turns, rules=RULES, problem=name) for name in ("p", "q")]


def test_each_episode_has_its_programs_and_violations_in_order(tmp_path, transcripts):
    run = open_run(write_eval(tmp_path / "run", transcripts, RULES))
    found = list(replay(recorded_episodes(run), "nsjail"))
    assert [each.recorded.address for each in found] == ["p/0", "q/0"]
    assert [[p.verdict for p in each.programs] for each in found] == [["same", "same"]] * 2
    assert [each.violations for each in found] == [[], []]
    [only] = replay(recorded_episodes(run, ["q/0"]), None)
    assert (only.recorded.address, only.programs) == ("q/0", [])


def test_settings_of_the_caller_replace_the_rules_of_a_file(tmp_path, transcripts):
    path = tmp_path / "t.jsonl"
    write_transcripts(path, transcripts)
    scripts = recorded_episodes(open_run(path), limit=1)
    [[_, call]] = [each.programs for each in replay(scripts, "nsjail")]
    assert call.verdict == "differs" and "+NameError: name 'a' is not defined" in call.difference
    session = recorded_episodes(open_run(path), ["line/2"], {"session": True})
    [[_, call]] = [each.programs for each in replay(session, "nsjail")]
    assert call.verdict == "same"


def test_an_empty_run_and_an_unknown_address_are_refused(tmp_path, transcripts):
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(SettingsError, match="holds no episode yet"):
        list(recorded_episodes(open_run(tmp_path / "empty.jsonl")))
    run = open_run(write_eval(tmp_path / "run", transcripts, RULES))
    with pytest.raises(SettingsError, match="no episode 'x/0'"):
        list(recorded_episodes(run, ["p/0", "x/0"]))
