"""The files of a comparison."""

from __future__ import annotations

import html
import json
import sys
import types

import pytest
from helpers.compared_runs import a_record, write_verdicts

from retool_env.errors import SettingsError
from retool_env.evaluation.compare.comparison import compare
from retool_env.evaluation.compare.page import write_files, write_view

pytest.importorskip("matplotlib")


@pytest.fixture
def viewer(monkeypatch):
    """The viewer's functions, with the signatures of `retool_env.evaluation.view.static`."""
    asked = []

    def write_static(runs, path, addresses=None):
        asked.append(([run.path.name for run in runs], addresses))
        path.write_text("page")
        return [path]

    def link(run, address, beside=None):
        return f"#run={run}&episode={address}&beside={beside[0]}.{beside[1]}"

    module = types.ModuleType("retool_env.evaluation.view.static")
    module.write_static, module.link = write_static, link
    package = types.ModuleType("retool_env.evaluation.view")
    package.static = module
    monkeypatch.setitem(sys.modules, "retool_env.evaluation.view", package)
    monkeypatch.setitem(sys.modules, "retool_env.evaluation.view.static", module)
    return asked


def three_runs(folder):
    verdicts = (
        ("a", {"p<1>": [True, True], "q": [False, True]}),
        ("b", {"p<1>": [True, False], "q": [True, True]}),
        ("c", {"p<1>": [True, True], "q": [False, True]}),
    )
    return [write_verdicts(folder / name, some, a_record(f"<i>{name}")) for name, some in verdicts]


def test_the_page_the_figures_and_the_viewer_are_written(tmp_path, viewer):
    report = compare(three_runs(tmp_path)[:2])
    files = write_files(report, tmp_path / "out" / "deep")
    assert [file.name for file in files] == ["compare.html", "view.html", "compare.json"]
    assert json.loads(files[2].read_text()) == json.loads(json.dumps(report.to_json()))
    assert viewer == [(["a", "b"], [{"p<1>/1", "q/0"}, {"p<1>/1", "q/0"}])]
    text = files[0].read_text()
    assert "No difference between B and A was found" in text
    assert "<i>" not in text and "p<1>" not in text  # all names are escaped
    assert 'href="view.html#run=0&amp;episode=q/0&amp;beside=1.q/0"' in text
    assert (tmp_path / "out" / "deep" / "differences-A-B.png").exists()


def test_links_name_the_runs_of_their_comparison(tmp_path, viewer):
    report = compare(three_runs(tmp_path))
    text = write_files(report, tmp_path / "out")[0].read_text()
    assert 'href="view.html#run=1&amp;episode=q/0&amp;beside=2.q/0"' in text
    assert "adjusted by Holm&#x27;s method over 3 comparisons" in text


def test_without_flipped_episodes_there_is_no_viewer(tmp_path, viewer):
    first, _, third = three_runs(tmp_path)
    report = compare([first, third])
    assert write_view(report, tmp_path / "view.html") == [] == viewer
    assert [file.name for file in write_files(report, tmp_path / "out")] == [
        *("compare.html", "compare.json"),
    ]


def test_the_viewer_shows_the_flipped_episodes_only(tmp_path):
    static = pytest.importorskip("retool_env.evaluation.view.static")
    report = compare(three_runs(tmp_path)[:2])
    (tmp_path / "out").mkdir()
    [file] = write_view(report, tmp_path / "out" / "view.html")
    data = file.read_text().partition('<script type="application/json" id="data">')[2]
    rows = json.loads(data.partition("</script>")[0])["rows"]
    assert [sorted(row["address"] for row in some) for some in rows] == [["p<1>/1", "q/0"]] * 2
    page = write_files(report, tmp_path / "out")[0].read_text()
    assert f"view.html{html.escape(static.link(0, 'q/0', (1, 'q/0')))}" in page


def test_a_file_of_the_users_is_not_overwritten(tmp_path):
    report = compare(three_runs(tmp_path)[:2])
    (tmp_path / "compare.json").write_text("mine")
    with pytest.raises(SettingsError, match=r"compare\.json exists already"):
        write_files(report, tmp_path)
    assert not (tmp_path / "view.html").exists()
    write_files(report, tmp_path / "new")
    write_files(report, tmp_path / "new")
