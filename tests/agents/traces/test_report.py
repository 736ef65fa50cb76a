"""Report: the files of a cold start, and a damaged report."""

from __future__ import annotations

import dataclasses
import json

import pytest
from helpers.tokenised import episode

from agents.base.settings import SettingsError
from agents.traces.report import read_report, table, write_result
from agents.traces.sources import Source
from agents.traces.verification import Drop
from retool_env.rollout import PolicyUnavailable

DAMAGES = {
    "cut in the middle": lambda text: text[: len(text) // 2],
    "a list": lambda text: "[1, 2]",
    "no keys": lambda text: "{}",
    "other kinds": lambda text: text.replace('"run": 2', '"run": "2"'),
}


def finished(reward, **more):
    return dataclasses.replace(episode(1, reward, **more), answer=r"\boxed{1}")


def made(*transcripts):
    problem = finished(1.0).problem
    known = [{"id": str(number)} for number in range(len(transcripts))]
    return [Source(problem, "Q", each) for each in known], list(transcripts)


def test_each_line_is_kept_or_dropped_with_its_reason(tmp_path, capsys):
    right, wrong = finished(1.0), finished(-1.0)
    write_result(tmp_path, *made(right, wrong, Drop("refused", "too long")), False)
    [kept] = map(json.loads, (tmp_path / "data.jsonl").read_text().splitlines())
    assert kept["id"] == "0" and kept["messages"][0] == {"role": "user", "content": "Q"}
    assert kept["messages"][1] == {"role": "assistant", "content": right.response_text}
    dropped = list(map(json.loads, (tmp_path / "dropped.jsonl").read_text().splitlines()))
    assert [(row["id"], row["reason"]) for row in dropped] == [
        ("1", "wrong answer"),
        ("2", "refused"),
    ]
    assert [len(row["messages"]) for row in dropped] == [2, 1]
    report = read_report(tmp_path)
    assert (report["lines"], report["verified"]) == (3, 1)
    assert report["dropped"] == {"wrong answer": 1, "refused": 1}
    assert report["answers_unchecked"] == 1 and report["programs"] == {"run": 1, "failed": 0}
    assert table(report) in capsys.readouterr().out


def test_a_line_that_could_not_be_done_is_told_after_the_files_are_written(tmp_path):
    failed = finished(0.0, failed=True)
    with pytest.raises(PolicyUnavailable, match="1 of 2 lines could not be done"):
        write_result(tmp_path, *made(finished(1.0), failed), False)
    assert read_report(tmp_path)["failed"] == 1


def test_without_a_verified_trace_the_reasons_are_pointed_to(tmp_path):
    with pytest.raises(SettingsError, match=r"no trace was verified: .*dropped\.jsonl"):
        write_result(tmp_path, *made(finished(-1.0)), False)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_report_is_named_with_the_cure(damage, tmp_path):
    text = {"lines": 3, "verified": 2, "dropped": {"no code": 1}, "failed": 0}
    text |= {"answers_unchecked": 0, "programs": {"run": 2, "failed": 0}}
    text |= {"made_up_results": {"all": 0, "contradicted": 0}}
    path = tmp_path / "report.json"
    path.write_text(json.dumps(text))
    assert "| verified" in table(read_report(tmp_path))
    path.write_text(DAMAGES[damage](path.read_text()))
    with pytest.raises(SettingsError, match=r"report\.json: .*delete .*done: --resume then"):
        read_report(tmp_path)
