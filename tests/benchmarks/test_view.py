"""The benchmark of the viewer: its file, and figures that rest on right answers."""

import json

import pytest
from helpers.viewed_runs import a_page

from benchmarks import view as benchmark
from retool_env.evaluation.runs import open_run
from retool_env.evaluation.view import static
from retool_env.transcript import check_transcript


def test_the_file_has_valid_episodes_and_about_the_wanted_size(tmp_path):
    benchmark.make_file(tmp_path / "e.jsonl", 20, 0.2)
    assert abs((tmp_path / "e.jsonl").stat().st_size / 200_000 - 1) < 0.2
    episodes = [transcript for _, transcript in open_run(tmp_path / "e.jsonl").episodes()]
    assert len(episodes) == 20
    for transcript in episodes:
        check_transcript(transcript)
        assert [call.ok for call in transcript.calls] == [False, True]


def test_all_parts_are_measured_and_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(static, "PAGE", a_page(tmp_path / "page"))
    monkeypatch.setattr(benchmark, "REPEATS", 1)
    out = tmp_path / "view.json"
    assert benchmark.main(["--episodes", "20", "--megabytes", "0.2", "--out", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert figures["date"] and figures["device"] and list(figures["parts"]) == list(benchmark.PARTS)
    assert figures["parts"]["opening"]["rows"] == 20
    found = {name: each["found"] for name, each in figures["parts"]["search"].items()}
    assert found == {"none": 0, "one": 1, "all": 20, "not_ascii": 0}
    assert figures["parts"]["page"]["files"] == 1
    assert "first opening" in capsys.readouterr().out


@pytest.mark.parametrize("options", [["--episodes", "1"], ["--megabytes", "0"], ["--parts", "x"]])
def test_a_wrong_option_is_refused(options, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(options)
    assert "error" in capsys.readouterr().err
