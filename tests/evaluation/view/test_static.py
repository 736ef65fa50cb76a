"""The page as files holds its data, and is divided when it is large."""

import base64
import hashlib
import json
import re

import pytest
from helpers.run_folders import fill
from helpers.viewed_runs import a_page, a_recover, an_eval, evaluated, hostile

from retool_env.errors import MissingFile, SettingsError
from retool_env.evaluation.runs import open_run
from retool_env.evaluation.view import static
from retool_env.evaluation.view.filters import FilterError
from retool_env.evaluation.view.index import Index
from retool_env.evaluation.view.static import link, matching, write_static
from retool_env.transcript import write_transcripts


@pytest.fixture(autouse=True)
def page(tmp_path, monkeypatch):
    monkeypatch.setattr(static, "PAGE", a_page(tmp_path / "page"))
    return tmp_path / "page"


def data_of(path):
    text = path.read_text("ascii")
    [held] = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL
    )
    return json.loads(held)


def opened(path):
    index = Index(open_run(path), cache=False)
    index.refresh()
    return index


def test_the_file_has_the_runs_their_rows_and_their_episodes(tmp_path):
    runs = [open_run(an_eval(tmp_path / "one")), open_run(a_recover(tmp_path / "two"))]
    assert write_static(runs, tmp_path / "view.html") == [tmp_path / "view.html"]
    data = data_of(tmp_path / "view.html")
    assert [run["title"] for run in data["runs"]] == ["a/checkpoint", "m"]
    assert [len(rows) for rows in data["rows"]] == [2, 5]
    assert [[*episodes] for episodes in data["episodes"]] == [
        [row["address"] for row in rows] for rows in data["rows"]
    ]
    assert data["tokens"] == data["elsewhere"] == [{}, {}]
    assert data["episodes"][0]["p/1/0"]["spans"][1]["text"] == "so <code>a</code>"


def test_modules_are_joined_in_the_order_of_their_use(tmp_path):
    write_static([open_run(an_eval(tmp_path / "run"))], tmp_path / "view.html")
    text = (tmp_path / "view.html").read_text()
    [script] = re.findall(r'<script type="module">(.*?)</script>', text, re.DOTALL)
    assert " ".join(script.split()) == (
        "const two = 2; async function three() {} const one = two; "
        "function main() { return one + two + three; } main();"
    )
    assert "src=" not in text and "href=" not in text


def test_the_policy_allows_the_script_and_the_style_by_their_hashes_alone(tmp_path):
    write_static([open_run(an_eval(tmp_path / "run"))], tmp_path / "view.html")
    text = (tmp_path / "view.html").read_text()
    [policy] = re.findall(r'Content-Security-Policy" content="(.*?)"', text)
    for kind, pattern in (
        ("script", r'type="module">(.*?)</script>'),
        ("style", "<style>(.*?)</style>"),
    ):
        [held] = re.findall(pattern, text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(held.encode()).digest()).decode()
        assert f"{kind}-src &#x27;sha256-{digest}&#x27;;" in policy
    assert "unsafe" not in policy and policy.startswith("default-src &#x27;none&#x27;;")


def test_hostile_texts_cannot_end_the_element_of_the_data(tmp_path):
    write_transcripts(tmp_path / "t.jsonl", [hostile()])
    write_static([open_run(tmp_path / "t.jsonl")], tmp_path / "view.html")
    text = (tmp_path / "view.html").read_text("ascii")
    assert text.count("<script") == text.count("</script") == 2
    assert "<!--" not in text and "<img" not in text
    view = data_of(tmp_path / "view.html")["episodes"][0]["line/1"]
    assert [span["text"] for span in view["spans"]] == [span.text for span in hostile().spans]


def test_a_large_page_is_divided_and_each_file_names_the_others(tmp_path, monkeypatch):
    run = open_run(an_eval(tmp_path / "run", 12))
    monkeypatch.setattr(static, "MOST_PAGE", 16_000)
    files = write_static([run], tmp_path / "view.html")
    assert [file.name for file in files][:2] == ["view.html", "view-2.html"]
    held = [data_of(file) for file in files]
    whole = [row["address"] for row in held[0]["rows"][0]]
    assert [address for data in held for address in data["episodes"][0]] == whole
    for file, data in zip(files, held, strict=True):
        assert file.stat().st_size <= static.MOST_PAGE
        assert [row["address"] for row in data["rows"][0]] == whole
        assert {*data["episodes"][0], *data["elsewhere"][0]} == set(whole)
        for address, name in data["elsewhere"][0].items():
            assert address in held[[each.name for each in files].index(name)]["episodes"][0]


def test_a_list_of_episodes_that_fills_a_page_is_refused(tmp_path, monkeypatch):
    run = open_run(an_eval(tmp_path / "run", 30))
    monkeypatch.setattr(static, "MOST_PAGE", 16_000)
    with pytest.raises(SettingsError, match="list of 30 episodes alone fills a page"):
        write_static([run], tmp_path / "view.html")


def test_chosen_episodes_alone_are_written_and_linked(tmp_path):
    run = open_run(a_recover(tmp_path / "run"))
    kept = ["dose/0/p/0", "fork/control/p/0.1/1"]
    write_static([run], tmp_path / "view.html", [kept])
    data = data_of(tmp_path / "view.html")
    assert [*data["episodes"][0]] == [row["address"] for row in data["rows"][0]] == kept
    forks = data["episodes"][0]["dose/0/p/0"]["forks"]
    assert [(fork["ended"], fork["addresses"]) for fork in forks] == [(2, [kept[1]]), (2, [])]
    write_static([run], tmp_path / "view.html", [kept[1:]])
    assert data_of(tmp_path / "view.html")["episodes"][0][kept[1]]["parent"]["address"] is None


def test_a_file_that_is_not_a_page_is_not_overwritten(tmp_path):
    run = open_run(an_eval(tmp_path / "run"))
    (tmp_path / "mine.html").write_text("mine")
    for path in (tmp_path / "mine.html", tmp_path / "run"):
        with pytest.raises(SettingsError, match="is not a page of `retool view`"):
            write_static([run], path)
    assert (tmp_path / "mine.html").read_text() == "mine"
    for _ in range(2):
        write_static([run], tmp_path / "view.html")


def test_a_missing_page_is_named(tmp_path, page):
    (page / "index.html").unlink()
    with pytest.raises(MissingFile, match=r"index\.html was not found"):
        write_static([open_run(an_eval(tmp_path / "run"))], tmp_path / "view.html")


def test_a_query_keeps_episodes_by_fields_texts_and_the_other_run(tmp_path):
    one, two = an_eval(tmp_path / "one", 4), an_eval(tmp_path / "two", 4)
    fill(two / "episodes.jsonl", [evaluated(0), evaluated(2), evaluated(3)])
    indexes = [opened(one), opened(two)]
    assert matching(indexes[:1], "right:yes") == [["p/1/1", "p/1/3"]]
    assert matching(indexes, '"<ANSWER>4<"') == [["p/1/0", "p/1/2"]] * 2
    assert matching(indexes, "flipped:no") == [["p/1/0", "p/1/2", "p/1/3"]] * 2
    assert matching(indexes[:1], "flipped:no") == [[]]
    with pytest.raises(FilterError):
        matching(indexes, "right:perhaps")


def test_a_link_is_encoded():
    assert link(1, 'a/b&c="<é\ud800') == "#run=1&episode=a%2Fb%26c%3D%22%3C%C3%A9%3F"
    assert link(0, "p", beside=(1, "q r")) == "#run=0&episode=p&beside_run=1&beside=q%20r"
