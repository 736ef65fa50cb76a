"""The index reads a run once, follows its growth, and never shows rows of another file."""

import json
import os
import threading

import pytest
from helpers.episodes import ANSWERED, RIGHT, WRONG, episode
from helpers.run_folders import fill
from helpers.viewed_runs import a_recover, a_training, an_eval, append, evaluated, hostile

from retool_env.errors import DataError, SettingsError
from retool_env.evaluation import runs
from retool_env.evaluation.runs import open_run
from retool_env.evaluation.view import index as module
from retool_env.evaluation.view.index import Index
from retool_env.rotation import close_part
from retool_env.transcript import write_transcripts


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def read(monkeypatch):
    """The numbers of the lines that are decoded."""
    numbers = []
    whole = module.transcript_of
    monkeypatch.setattr(
        module,
        "transcript_of",
        lambda *given, **named: numbers.append(given[1]) or whole(*given, **named),
    )
    return numbers


def opened(path, **settings):
    index = Index(open_run(path), **settings)
    index.refresh()
    return index


def addresses(index):
    return [row["address"] for row in index.rows()]


def closed(path):
    index = opened(path)
    index.close()
    return addresses(index)


@pytest.mark.parametrize("make", [an_eval, a_recover, a_training])
def test_every_kind_of_run_has_the_addresses_of_its_episodes(tmp_path, make):
    path = make(tmp_path / "run")
    assert addresses(opened(path)) == [place.address for place, _ in open_run(path).episodes()]


@pytest.mark.parametrize("make", [an_eval, a_recover, a_training])
def test_an_episode_is_read_by_its_address_with_its_place(tmp_path, make):
    path = make(tmp_path / "run")
    index = opened(path)
    for place, transcript in open_run(path).episodes():
        assert index.episode(place.address, tokens=True) == (place, transcript)
    with pytest.raises(SettingsError, match="has no episode 'nothing'"):
        index.episode("nothing")


def test_the_second_opening_reads_no_line(tmp_path, read):
    path = an_eval(tmp_path / "run", 3)
    first = closed(path)
    assert (path / ".view-index.json").exists()
    read.clear()
    assert addresses(opened(path)) == first
    assert read == []


def test_an_index_without_a_cache_leaves_no_file(tmp_path):
    path = an_eval(tmp_path / "run")
    before = sorted(path.iterdir())
    opened(path, cache=False).close()
    assert sorted(path.iterdir()) == before


def test_appended_lines_alone_are_read(tmp_path, read):
    path = an_eval(tmp_path / "run", 2)
    closed(path)
    index = opened(path)
    append(path / "episodes.jsonl", evaluated(2))
    read.clear()
    assert index.refresh()
    assert read == [3]
    assert not index.refresh()
    assert addresses(index) == ["p/1/0", "p/1/1", "p/1/2"]


def test_a_reader_gets_the_rows_that_changed(tmp_path):
    path = an_eval(tmp_path / "run", 2)
    index = opened(path)
    rows, since, removed = index.changes(0)
    assert (len(rows), removed) == (2, [])
    assert index.changes(since) == ([], since, [])
    append(path / "episodes.jsonl", evaluated(0, error="again"), evaluated(2))
    index.refresh()
    rows, since, removed = index.changes(since)
    assert ([row["address"] for row in rows], removed) == (["p/1/0", "p/1/2"], [])
    assert addresses(index) == ["p/1/1", "p/1/0", "p/1/2"]
    assert index.episode("p/1/0")[0].error == "again"


def test_half_a_last_line_is_read_once_it_is_whole(tmp_path):
    path = an_eval(tmp_path / "run", 1)
    index = opened(path)
    text = json.dumps(evaluated(1).to_json()) + "\n"
    for part in (text[:100], text[100:-1]):
        with open(path / "episodes.jsonl", "a") as file:
            file.write(part)
        assert not index.refresh()
    with open(path / "episodes.jsonl", "a") as file:
        file.write("\n")
    assert index.refresh()
    assert addresses(index) == ["p/1/0", "p/1/1"]


def test_a_file_that_became_shorter_is_read_anew(tmp_path):
    path = an_eval(tmp_path / "run", 3)
    index = opened(path)
    _, since, _ = index.changes(0)
    fill(path / "episodes.jsonl", [evaluated(0), evaluated(7)])
    index.refresh()
    assert addresses(index) == ["p/1/0", "p/1/7"]
    rows, _, removed = index.changes(since)
    assert {row["address"] for row in rows} == {"p/1/0", "p/1/7"}
    assert removed == ["p/1/1", "p/1/2"]


def test_a_replaced_file_of_another_head_is_read_anew_from_the_cache_also(tmp_path):
    path = an_eval(tmp_path / "run", 2)
    closed(path)
    fill(path / "episodes.jsonl", [evaluated(n, "other") for n in range(9)])
    assert addresses(opened(path)) == [f"other/{n}" for n in range(9)]


def test_an_episode_of_a_file_that_was_just_replaced_is_not_shown(tmp_path):
    path = an_eval(tmp_path / "run", 2)
    index = opened(path)
    fill(path / "episodes.jsonl", [evaluated(n, "other") for n in range(9)])
    with pytest.raises(DataError, match=r"not an episode|was replaced"):
        index.episode("p/1/1")
    index.refresh()
    assert index.episode("other/8")[0].problem == "other"


def test_a_training_run_gains_files_and_loses_them(tmp_path):
    path = a_training(tmp_path / "run")
    index = opened(path)
    write_transcripts(path / "eval-20.jsonl", [episode("p", ANSWERED, RIGHT)])
    (path / "eval-2.jsonl").unlink()
    assert index.refresh()
    assert addresses(index) == [
        *("transcripts-1/1", "transcripts/1", "transcripts/2"),
        *("step-10/p/0", "step-10/p/1", "step-10/q/0", "step-20/p/0"),
    ]


def test_episodes_keep_their_rows_and_addresses_when_a_file_is_closed(tmp_path, read):
    path = a_training(tmp_path / "run")
    index = opened(path)
    _, since, _ = index.changes(0)
    known = {address: index.episode(address, tokens=True) for address in addresses(index)}
    for step in (0, 10):  # the second time there is one closed part already
        close_part(path / "transcripts.jsonl", step, step + 9)
        read.clear()
        assert not index.refresh() and read == []
        assert index.changes(since) == ([], since, [])
        write_transcripts(path / "transcripts.jsonl", [episode("r", ANSWERED)])
        assert index.refresh() and len(read) == 1
        _, since, _ = index.changes(since)
    assert addresses(index)[:4] == [
        *("transcripts-1/1", "transcripts/1", "transcripts/2", "transcripts/3"),
    ]
    for address, episode_before in known.items():
        assert index.episode(address, tokens=True) == episode_before
    assert addresses(index) == addresses(opened(path, cache=False))
    assert addresses(index) == [place.address for place, _ in open_run(path).episodes()]
    question = index.episode("transcripts/1")[1].problem.question
    assert "transcripts/1" in index.search(question)
    (path / "transcripts.jsonl").unlink()
    assert "transcripts/3" in addresses(opened(path))


def test_the_samples_of_lines_without_a_number_are_counted_on_after_the_cache(tmp_path):
    path = a_training(tmp_path / "run")
    closed(path)
    write_transcripts(path / "eval-10.jsonl", [episode("p", ANSWERED, WRONG)])
    assert "step-10/p/2" in addresses(opened(path))
    assert opened(path).episode("step-10/p/2")[0].sample == 2


def test_one_evaluation_of_a_training_run_has_a_cache_of_its_own(tmp_path):
    path = a_training(tmp_path / "run")
    whole = closed(path)
    assert closed(f"{path}@10") == ["step-10/p/0", "step-10/p/1", "step-10/q/0"]
    assert closed(path) == whole
    index = opened(f"{path}@10")
    write_transcripts(path / "eval-20.jsonl", [episode("p", ANSWERED, RIGHT)])
    assert not index.refresh()


@pytest.mark.parametrize(
    "change",
    [
        lambda values: "nonsense",
        lambda values: "",
        lambda values: "[]",
        lambda values: "[" * 100_000,
        lambda values: json.dumps({**values, "version": 0}),
        lambda values: json.dumps({**values, "files": {"episodes.jsonl": {"size": 1}}}),
        lambda values: json.dumps({**values, "files": 3}),
    ],
)
def test_a_damaged_cache_is_made_anew(tmp_path, change, read):
    path = an_eval(tmp_path / "run", 2)
    first = closed(path)
    cache = path / ".view-index.json"
    good = cache.read_text()
    cache.write_text(change(json.loads(good)))
    read.clear()
    assert closed(path) == first
    assert read == [1, 2]
    assert json.loads(cache.read_text()) == json.loads(good)


def test_a_cache_with_rows_of_other_fields_is_made_anew(tmp_path, read):
    path = an_eval(tmp_path / "run", 2)
    closed(path)
    cache = path / ".view-index.json"
    values = json.loads(cache.read_text())
    del values["files"]["episodes.jsonl"]["episodes"][0][2]["turns"]
    cache.write_text(json.dumps(values))
    read.clear()
    opened(path)
    assert read == [1, 2]


def test_a_run_that_cannot_be_written_has_its_cache_in_the_users_folder(tmp_path, home, read):
    path = an_eval(tmp_path / "run", 2)
    (path / ".view-index.json").mkdir()  # no file can be put in its place
    closed(path)
    assert len(list(home.rglob("*.json"))) == 1
    assert [each.name for each in path.iterdir() if each.name.startswith(".view-")] == [
        ".view-index.json"
    ]
    read.clear()
    opened(path)
    assert read == []


def test_several_viewers_open_a_run_at_once(tmp_path):
    path = an_eval(tmp_path / "run", 20)
    found, begin = [], threading.Barrier(4)

    def view():
        begin.wait()
        for _ in range(3):
            found.append(closed(path))

    threads = [threading.Thread(target=view) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[f"p/1/{n}" for n in range(20)]] * 12
    assert [each for each in os.listdir(path) if each.startswith(".view-")] == [".view-index.json"]


def test_damaged_lines_are_named_and_the_others_shown(tmp_path):
    path = tmp_path / "t.jsonl"
    write_transcripts(path, [hostile()])
    with open(path, "a") as file:
        file.write('[]\n{\n{"problem": {"id": 3}}\n' + "[" * 100_000 + "\n")
    write_transcripts(path, [episode("p", ANSWERED, RIGHT)])
    for index in (opened(path), opened(path)):
        assert addresses(index) == ["line/1", "line/6"]
        assert [each.split(" (")[0] for each in index.damaged] == [
            f"{path}, line {n} is not an episode" for n in (2, 3, 4, 5)
        ]
        index.close()


def test_a_line_that_is_too_long_is_named_each_time(tmp_path, monkeypatch):
    path = tmp_path / "t.jsonl"
    write_transcripts(path, [episode("p", ANSWERED, RIGHT)])
    monkeypatch.setattr(module, "MOST_LINE", 100)
    index = Index(open_run(path))
    for _ in range(2):
        with pytest.raises(DataError, match="line 1 is longer than"):
            index.refresh()


def test_a_text_is_searched_in_question_answer_and_spans_without_case(tmp_path):
    path = tmp_path / "t.jsonl"
    made = [episode("p", ANSWERED, text) for text in ('Say "Hi"\n', "ÉTÉ", "\\frac")]
    write_transcripts(path, [*made, hostile()])
    index = opened(path)
    searched = {
        'say "hi"': ["line/1"],
        "été": ["line/2"],
        "\\FRAC": ["line/3"],
        "<SCRIPT>": ["line/4"],
        "42": ["line/1", "line/2", "line/3"],  # the reference answer
        "outcome": [],  # a name of the record
        "\u202e": ["line/4"],
        "\x1b": ["line/4"],
        "\ud800": ["line/4"],
    }
    assert {text: index.search(text) for text in searched} == searched


def test_progress_is_told_in_bytes_of_all_files(tmp_path):
    path = a_training(tmp_path / "run")
    told = []
    opened(path, progress=lambda done, total: told.append((done, total)))
    total = sum(each.stat().st_size for each in path.glob("*.jsonl"))
    assert told == sorted(told)
    assert told[-1] == (total, total)


def test_a_run_whose_record_is_being_replaced_is_still_followed(tmp_path):
    path = an_eval(tmp_path / "run", 1)
    index = opened(path)
    record = (path / "eval.json").read_text()
    (path / "eval.json").write_text(record[:20])
    append(path / "episodes.jsonl", evaluated(1))
    assert index.refresh()
    assert addresses(index) == ["p/1/0", "p/1/1"]


def test_a_run_without_episodes_has_no_rows(tmp_path):
    (tmp_path / runs.CONFIG).write_text(json.dumps({"settings": {}}))
    index = opened(tmp_path)
    assert index.changes(0) == ([], 0, [])
