"""Loading: the place that rows come from, and the rows that are kept."""

import collections
import json

import pytest

from retool_env.problems import ProblemsUnavailable, aime, dapo, gsm8k, math


def test_a_path_comes_before_the_folder_and_the_folder_before_the_hub(hub, tmp_path, monkeypatch):
    hub["openai/gsm8k", "main", "train"] = [{"question": "?", "answer": "#### 1"}]
    assert gsm8k()[0].answer == "1"
    monkeypatch.setenv("RETOOL_DATA", str(tmp_path))
    assert gsm8k()[0].answer == "1"  # the folder lacks the file
    (tmp_path / "gsm8k_train.jsonl").write_text('{"question": "?", "answer": "#### 2"}')
    assert gsm8k()[0].answer == "2"
    (tmp_path / "mine.jsonl").write_text('{"question": "?", "answer": "#### 3"}')
    assert gsm8k(path=tmp_path / "mine.jsonl")[0].answer == "3"


def test_a_missing_file_or_folder_is_an_error(tmp_path, monkeypatch):
    with pytest.raises(ProblemsUnavailable, match=r"no file '/nowhere/x.jsonl'"):
        gsm8k(path="/nowhere/x.jsonl")
    monkeypatch.setenv("RETOOL_DATA", str(tmp_path / "missing"))
    with pytest.raises(ProblemsUnavailable, match="RETOOL_DATA names"):
        gsm8k()


@pytest.mark.parametrize("source", [aime, dapo, gsm8k, math])
def test_unavailable_problems_say_what_to_do(hub, source):
    with pytest.raises(ProblemsUnavailable) as caught:
        source()
    assert isinstance(caught.value, FileNotFoundError)
    for way in ("path=", "RETOOL_DATA", "Hugging Face Hub", "hf auth login", "HF_HOME"):
        assert way in str(caught.value)


def test_an_unreachable_hub_is_asked_once(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    import huggingface_hub

    probes = collections.Counter()

    class NoNetwork:
        def dataset_info(self, repo, timeout):
            probes[repo, timeout <= 10] += 1
            raise OSError("Name or service not known")

    monkeypatch.delenv("RETOOL_DATA", raising=False)
    monkeypatch.setattr(huggingface_hub, "HfApi", NoNetwork)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    retried = []
    monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", retried.append)
    with pytest.raises(ProblemsUnavailable, match=r"openai/gsm8k.*can't be loaded"):
        gsm8k()
    assert probes == {("openai/gsm8k", True): 1} and not retried
    assert datasets.config.HF_HUB_OFFLINE is False  # the setting changed for that call only


def test_omitted_rows_are_counted_and_logged(tmp_path, caplog):
    path = tmp_path / "rows.jsonl"
    answers = ["1", None, "None", "2", "1", "5"]
    questions = ["a", "b", "c", "d", "a", "d"]
    rows = [{"problem": q, "answer": a} for q, a in zip(questions, answers, strict=True)]
    path.write_text("\n".join(map(json.dumps, [*rows, {"problem": "e", "answer": 0}])))
    source = math(path=path)
    assert [(p.id, p.answer) for p in source] == [("math/train/0", "1"), ("math/train/6", "0")]
    assert source.omitted == {
        "no answer": 1,
        "an answer that can't be graded": 1,
        "a repeated question": 1,
        "different answers to the same question": 2,
    }
    (message,) = caplog.messages
    for part in (
        f"{path}: 2 problems; left out are 1 with no answer (line 2)",
        "1 with an answer that can't be graded (line 3)",
        "1 with a repeated question (line 5 as line 1)",
        "2 with different answers to the same question (line 6 '5', line 4 '2')",
    ):
        assert part in message
    path.write_text('{"problem": "b", "answer": null}')
    with pytest.raises(ValueError, match=r"holds no usable problem; left out are 1 with no answer"):
        math(path=path)


def test_a_source_of_30_problems_refuses_two_answers_to_one_question(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"problem": "?", "answer": 1}\n{"problem": "? ", "answer": 2}\n')
    with pytest.raises(ValueError, match=r"line 2: the answer is '2', but .*line 1 answers .*'1'"):
        aime(2024, path=path)
