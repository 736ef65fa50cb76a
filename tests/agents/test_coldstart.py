"""Cold starts from solutions in words, rewritten over HTTP, and from rewritten traces."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal

import pytest
import torch

pytest.importorskip("openai", reason="pip install 'retool-env[openai]'")

from helpers.model_api import ModelAPI, Reply, serving
from helpers.signals import status_of
from helpers.small_runs import make_small
from transformers import AutoModelForCausalLM

from agents import coldstart, sft
from agents.__main__ import main
from agents.base.presets import load_settings
from agents.base.run import Run
from agents.base.settings import SettingsError, find_task
from agents.base.stopping import Stopped
from agents.models.tiny import make_model, make_tokenizer
from agents.traces.scripted import read_messages
from agents.traces.sources import read_sources
from retool_env.sandbox import Execution, Outcome
from retool_env.transcript import read_transcripts

SOLUTIONS = [
    {"question": "Compute 6 * 7.", "answer": 42, "solution": "Six sevens are 42."},
    {"id": "sum", "problem": "Compute 30 + 12.", "answer": "30 + 12 = <<30+12=42>>42.\n#### 42"},
    {"question": "Compute 2 ** 10.", "solution": "Ten doublings: \\boxed{1024}."},
]


def rewriter(conversation) -> Reply:
    """Lets a program compute the answer; makes its result up, unless it is stopped."""
    [expression] = re.findall(r"Problem: Compute (.*)\.\n", conversation[0]["content"])
    if len(conversation) == 1:
        code = f"<code>\n```python\nprint({expression})\n```\n</code>"
        return Reply(f"Let me compute it.\n{code}\n<interpreter>\n7\n</interpreter>\nIt is 7.")
    result = conversation[-1]["content"].split("\n")[2]
    return Reply(f"It is {result}.\n<answer>\n\\boxed{{{result}}}\n</answer>")


@pytest.fixture
def api():
    return ModelAPI(rewriter)


@pytest.fixture
def url(api):
    with serving(api) as url:
        yield url


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def settings(data, **overrides):
    values = {"data": data, "sandbox": {"name": "nsjail", "guests": 1}, **overrides}
    pairs = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    return load_settings(coldstart.Settings, "coldstart", "tiny", pairs)


def rewritten(program, made_up, result="42", **row):
    response = (
        f"Let me see.\n<code>\n```python\n{program}\n```\n</code>\n<interpreter>\n{made_up}\n"
        f"</interpreter>\n\nIt is {result}.\n<answer>\n\\boxed{{{result}}}\n</answer>"
    )
    said = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": response}]
    return {"messages": said, **row}


@pytest.mark.parametrize("stops", ["cuts", "ignores"])
def test_solutions_are_rewritten_around_what_was_really_printed(api, url, tmp_path, stops):
    api.stops = stops
    data = write(tmp_path / "s.jsonl", SOLUTIONS)
    run = tmp_path / "run"
    path = coldstart.train(settings(data, model="m", rewriter=url), run)
    rows = read(path)
    assert [(row["id"], row["answer"]) for row in rows] == [
        ("s/0", "42"),
        ("sum", "42"),
        ("s/2", "1024"),
    ]
    for row, result in zip(rows, ("42", "42", "1024"), strict=True):
        user, assistant = row["messages"]
        # What is trained on is asked as the environment asks, without a word of the solution.
        assert user == {"role": "user", "content": row["question"] + "\n"}
        expression = row["question"][len("Compute ") : -1]
        assert assistant["content"] == (
            f"Let me compute it.\n<code>\n```python\nprint({expression})\n```\n</code>"
            f"\n<interpreter>\n{result}\n</interpreter>\n\n"
            f"It is {result}.\n<answer>\n\\boxed{{{result}}}\n</answer>"
        )
    told = [request["messages"][0]["content"] for request in api.requests]
    assert any("Solution: Six sevens are 42." in text for text in told)
    assert any("Solution: 30 + 12 = 42.\n#### 42" in text for text in told)
    report = json.loads((run / "report.json").read_text())
    assert (report["lines"], report["verified"], report["dropped"]) == (3, 3, {})
    assert report["programs"] == {"run": 3, "failed": 0}


def test_what_is_dropped_is_written_down_with_its_reason(api, url, tmp_path, capsys):
    wrong = {"question": "Compute 1 + 1.", "answer": 3, "solution": "3."}
    rows = [
        *SOLUTIONS,
        wrong,
        rewritten("print(42)", "42", answer=42, id="same"),
        rewritten("print(42)", "41", answer=42, id="other"),
        rewritten("print(x)", "42", answer=42, id="error"),
    ]
    run = tmp_path / "run"
    chosen = settings(write(tmp_path / "s.jsonl", rows), model="m", rewriter=url)
    kept = read(coldstart.train(chosen, run))
    assert [row["id"] for row in kept] == ["s/0", "sum", "s/2", "same"]
    dropped = {row["id"]: (row["reason"], row["detail"]) for row in read(run / "dropped.jsonl")}
    assert dropped == {
        "s/3": ("wrong answer", "\\boxed{2}"),
        "other": ("contradiction", "block 1: '41', and really '42'"),
        "error": ("last program failed", "NameError: name 'x' is not defined"),
    }
    report = json.loads((run / "report.json").read_text())
    assert report["dropped"] == {"wrong answer": 1, "contradiction": 1, "last program failed": 1}
    assert report["made_up_results"] == {"all": 3, "contradicted": 2}
    said = capsys.readouterr().out
    assert re.search(r"\| verified +\| +4 \|", said)
    assert re.search(r"\| dropped: contradiction +\| +1 \|", said)
    assert coldstart.train(chosen, run, resume=True) == run / "data.jsonl"
    assert re.search(r"\| verified +\| +4 \|", capsys.readouterr().out)


def test_results_that_were_made_up_are_replaced_by_the_real_ones(tmp_path):
    rows = [rewritten("print(40 + 2)\nprint('=')", "41", answer="42", question="What?")]
    response = rows[0]["messages"][1]
    expected = response["content"].replace("\n41\n", "\n42\n=\n")
    # The space around a result is the environment's, whatever there was.
    response["content"] = response["content"].replace("</interpreter>\n\n", "</interpreter>\n\n\n ")
    chosen = settings(write(tmp_path / "s.jsonl", rows), keep_contradictions=True)
    [row] = read(coldstart.train(chosen, tmp_path / "run"))
    assert row["question"] == "What?"
    assert row["messages"][0]["content"] == "Q?"
    assert row["messages"][1]["content"] == expected
    # Once more, and nothing changes: what is in it is real by now.
    again = settings(write(tmp_path / "again.jsonl", [row]), name="again")
    assert read(coldstart.train(again, tmp_path / "again")) == [row]


def test_traces_without_a_known_answer_are_taken_only_if_asked_for(tmp_path):
    data = write(tmp_path / "s.jsonl", [rewritten("print(42)", "42")])
    with pytest.raises(SettingsError, match=r"s\.jsonl, line 1: .*require_answer=false"):
        coldstart.train(settings(data), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    [row] = read(coldstart.train(settings(data, require_answer=False), tmp_path / "run"))
    assert "answer" not in row
    assert json.loads((tmp_path / "run" / "report.json").read_text())["answers_unchecked"] == 1


def test_a_stopped_run_goes_on_without_doing_anything_twice(api, url, tmp_path, monkeypatch):
    rows = [*SOLUTIONS, rewritten("print(42)", "42", answer=42)]
    data = write(tmp_path / "s.jsonl", rows)
    whole = coldstart.train(settings(data, model="m", rewriter=url), tmp_path / "whole")
    chosen = settings(data, model="m", rewriter=url, in_flight=1)
    original, written = Run.write, []

    def stop(run, transcripts):
        original(run, transcripts)
        written.extend(transcripts)
        if len(written) == 2:
            raise KeyboardInterrupt

    cut = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(Run, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            coldstart.train(chosen, cut)
    with open(cut / "transcripts.jsonl", "a") as file:
        file.write('{"problem": {"id": "s/2"')  # what a kill leaves
    before = len(api.requests)
    assert coldstart.train(chosen, cut, resume=True).read_text() == whole.read_text()
    assert len(api.requests) - before == 2  # of the one solution that was left
    assert len(list(read_transcripts(cut / "transcripts.jsonl"))) == 4


def test_a_signal_stops_the_run_and_no_trace_is_made_twice(tmp_path, monkeypatch):
    rows = [rewritten("print(42)", "42", answer=42, id=str(i)) for i in range(4)]
    chosen = settings(write(tmp_path / "s.jsonl", rows), in_flight=1)
    replay, turns = coldstart.Replay.write, []

    async def writing(self, *given):
        turns.append(self)
        if len(turns) == 3:  # the second trace, after one of two turns
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.Event().wait()
        return await replay(self, *given)

    monkeypatch.setattr(coldstart.Replay, "write", writing)
    with pytest.raises(Stopped):
        coldstart.train(chosen, tmp_path / "run")
    assert status_of(tmp_path / "run")[:2] == ("stopped", 75)
    coldstart.train(chosen, tmp_path / "run", resume=True)
    assert len(turns) == 3 + 3 * 2
    made = read_transcripts(tmp_path / "run" / "transcripts.jsonl")
    assert sorted(t.problem.id for t in made) == ["0", "1", "2", "3"]


def test_a_line_that_changes_is_done_again(api, url, tmp_path):
    path = tmp_path / "s.jsonl"
    run = tmp_path / "run"
    chosen = settings(write(path, SOLUTIONS), model="m", rewriter=url)
    coldstart.train(chosen, run)
    (run / "done").unlink()
    write(path, [*SOLUTIONS[:2], {**SOLUTIONS[2], "question": "Compute 2 ** 10 + 0."}])
    before = len(api.requests)
    rows = read(coldstart.train(chosen, run, resume=True))
    assert rows[2]["question"] == "Compute 2 ** 10 + 0." and len(api.requests) - before == 2


def test_what_fails_is_named_and_done_later(api, url, tmp_path, monkeypatch, capsys):
    def failing(conversation):
        if "2 ** 10" in conversation[0]["content"]:
            return Reply("Hm", finish="content_filter")
        return rewriter(conversation)

    api.model = failing
    data = write(tmp_path / "s.jsonl", SOLUTIONS)
    command = ["coldstart", f"data={data}", "model=m", f"rewriter={url}"]
    command += ["--runs", str(tmp_path), "sandbox.guests=1"]
    monkeypatch.setattr("retool_env.rollout.engine._RETRY_SECONDS", 0)
    assert main(command) == 1
    said = capsys.readouterr()
    assert "1 of 3 lines could not be done" in said.err and "--resume" in said.err
    assert "failed" in said.out
    run = tmp_path / "coldstart"
    assert [row["id"] for row in read(run / "data.jsonl")] == ["s/0", "sum"]
    api.model = rewriter
    assert main([*command, "--resume"]) == 0
    assert [row["id"] for row in read(run / "data.jsonl")] == ["s/0", "sum", "s/2"]


def test_a_line_that_the_api_refuses_is_dropped_with_its_words(api, url, tmp_path):
    def refusing(conversation):
        if "2 ** 10" in conversation[0]["content"]:
            return Reply(refused="against the rules")
        return rewriter(conversation)

    api.model = refusing
    data = write(tmp_path / "s.jsonl", SOLUTIONS)
    run = tmp_path / "run"
    coldstart.train(settings(data, model="m", rewriter=url), run)
    assert [row["id"] for row in read(run / "data.jsonl")] == ["s/0", "sum"]
    [row] = read(run / "dropped.jsonl")
    assert row["id"] == "s/2" and row["reason"] == "refused"
    assert "against the rules" in row["detail"]
    assert json.loads((run / "report.json").read_text())["dropped"] == {"refused": 1}


def test_refusals_one_after_the_other_end_the_run_and_are_done_later(api, url, tmp_path):
    lines = [
        {"question": f"Compute {i} + 0.", "answer": str(i), "solution": f"It is {i}."}
        for i in range(14)
    ]
    gone = False

    def first_then_none(conversation):
        if gone and "Compute 0 " not in conversation[0]["content"]:
            return Reply(refused="the deployment is gone")
        return rewriter(conversation)

    api.model, gone = first_then_none, True
    data = write(tmp_path / "s.jsonl", lines)
    chosen, run = settings(data, model="m", rewriter=url, in_flight=1), tmp_path / "run"
    with pytest.raises(SettingsError, match="the deployment is gone"):
        coldstart.train(chosen, run)
    assert not (run / "done").exists()
    gone = False
    rows = read(coldstart.train(chosen, run, resume=True))
    assert len(rows) == 14 and not read(run / "dropped.jsonl")


def test_what_was_made_stays_however_the_file_changes(api, url, tmp_path):
    api.model = rewriter
    data = write(tmp_path / "s.jsonl", SOLUTIONS)
    chosen, run = settings(data, model="m", rewriter=url), tmp_path / "run"
    whole = read(coldstart.train(chosen, run))
    before = len(api.requests)
    (run / "done").unlink()
    write(tmp_path / "s.jsonl", SOLUTIONS[1:])  # the others' numbers are less by one
    fewer = read(coldstart.train(chosen, run, resume=True))
    (run / "done").unlink()
    write(tmp_path / "s.jsonl", SOLUTIONS)
    assert read(coldstart.train(chosen, run, resume=True)) == whole
    assert [row["messages"] for row in fewer] == [row["messages"] for row in whole[1:]]
    assert len(api.requests) == before


def test_an_api_that_refuses_ends_the_run_with_its_words(api, url, tmp_path, monkeypatch):
    data = write(tmp_path / "s.jsonl", SOLUTIONS)
    with pytest.raises(SettingsError, match=r"rewriter: .*does not serve the model 'n'"):
        coldstart.train(settings(data, model="n", rewriter=url), tmp_path / "a")
    api.key = "secret"
    with pytest.raises(PermissionError, match="refuses the key"):
        coldstart.train(settings(data, model="m", rewriter=url), tmp_path / "b")
    monkeypatch.setenv("SOME_KEY", "secret")
    key = {"name": url, "api_key_env": "SOME_KEY", "retries": 0}
    coldstart.train(settings(data, model="m", rewriter=key), tmp_path / "b")
    assert "secret" not in (tmp_path / "b" / "config.json").read_text()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data": None}, "data: name a file"),
        ({"data": "nowhere.jsonl"}, "data: there is no file nowhere"),
        ({"model": None}, "model: name the rewriter"),
        ({"rewriter": "vlm"}, "rewriter: 'vlm' is unknown"),
        ({"rewriter": {"name": "http://h:1", "retries": -1}}, "rewriter: .*retries"),
        ({"rewriter": {"name": "http://h:1", "tries": 1}}, "rewriter: .*'tries'"),
        ({"rewriter": {"name": "http://h:1", "api_key_env": "NO_KEY"}}, "'NO_KEY' is not set"),
        ({"rewriter": "transformers", "model": "./nowhere"}, "nowhere holds no model"),
        ({"env.interpreter": False}, "needs interpreter=true"),
        ({"in_flight": 0}, "in_flight must be at least 1"),
    ],
)
def test_settings_that_can_not_be_are_refused(tmp_path, overrides, message):
    data = write(tmp_path / "s.jsonl", SOLUTIONS)
    values = {"model": "m", "rewriter": "http://h:1", **overrides}
    chosen = settings(values.pop("data", data), **values)
    with pytest.raises(SettingsError, match=message):
        coldstart.train(chosen, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_verified_trace_is_an_error(tmp_path):
    data = write(tmp_path / "s.jsonl", [rewritten("print(1)", "2", answer=42)])
    with pytest.raises(SettingsError, match=r"no trace was verified: .*dropped\.jsonl"):
        coldstart.train(settings(data), tmp_path / "run")


def test_programs_of_several_traces_run_at_once(tmp_path):
    """Each waits until all of them run."""

    class Together:
        def __init__(self, number):
            self.barrier = asyncio.Barrier(number)
            self.running = self.most = 0

        async def run_async(self, code, limits=None, **_):
            self.running += 1
            self.most = max(self.most, self.running)
            await self.barrier.wait()
            self.running -= 1
            return Execution(Outcome.OK, "42\n")

    data = write(tmp_path / "s.jsonl", [rewritten("print(42)", "42", answer=42) for _ in range(12)])
    chosen = settings(data, in_flight=4)
    rules, _ = find_task(chosen.env)
    sources = read_sources(tmp_path / "s.jsonl", rules, True)
    run, box = Run(tmp_path / "run", chosen, False), Together(4)
    run.start()
    made = asyncio.run(coldstart.make_traces(chosen, run, rules, sources, None, box))
    assert all(transcript.correct for transcript in made) and box.most == 4


def test_a_local_rewriter_repeats_with_its_seed(tmp_path):
    shape = {"hidden_size": 16, "intermediate_size": 16, "initializer_range": 0.5}
    make_small(tmp_path / "model", max_position_embeddings=4096, **shape)
    data = write(tmp_path / "s.jsonl", SOLUTIONS)

    def written(name, seed):
        model = str(tmp_path / "model")
        chosen = settings(data, model=model, seed=seed, name=name, **{"env.max_tokens": 24})
        with pytest.raises(SettingsError, match="no trace was verified"):  # it knows nothing yet
            coldstart.train(chosen, tmp_path / name)
        made = read_transcripts(tmp_path / name / "transcripts.jsonl")
        return {t.problem.id: t.completion_ids for t in made}

    first = written("a", 0)
    assert len(first) == 3 and all(first.values())
    assert written("b", 0) == first != written("c", 1)


def test_sft_trains_on_what_comes_of_it(api, url, tmp_path):
    data = write(tmp_path / "s.jsonl", [*SOLUTIONS, rewritten("print(42)", "42", answer=42)])
    command = ["coldstart", f"data={data}", "model=m", f"rewriter={url}", "sandbox.guests=1"]
    assert main([*command, "--runs", str(tmp_path)]) == 0
    path = tmp_path / "coldstart" / "data.jsonl"
    tokenizer = make_tokenizer()
    made = {t.problem.id: t for t in read_transcripts(path.with_name("transcripts.jsonl"))}
    for row, trace in zip(read(path), read_messages(path, tokenizer), strict=True):
        episode = made[row["id"]]
        # Span by span what the episode was, but for its prompt.
        assert trace.spans[0].text == row["messages"][0]["content"]
        ours, theirs = trace.spans[1:], episode.spans[1:]
        assert [(s.author, s.text) for s in ours] == [(s.author, s.text) for s in theirs]
        trained = "".join(
            tokenizer.decode(s.token_ids) for s in trace.spans if s.logprobs is not None
        )
        assert trained == "".join(s.text for s in episode.spans if s.author == "model")
    overrides = [f"data={path}", "epochs=1", "batch_size=2", "name=s"]
    chosen = load_settings(sft.Settings, "sft", "tiny", overrides)
    trained = AutoModelForCausalLM.from_pretrained(sft.train(chosen, tmp_path / "s"))
    before = next(make_model(chosen.seed)[0].parameters())
    assert not torch.equal(next(trained.parameters()), before)


def test_the_command_documents_every_setting(capsys):
    assert main(["coldstart", "--help"]) == 0
    said = capsys.readouterr().out
    for name in ("data", "rewriter", "require_answer", "keep_contradictions"):
        assert re.search(rf"  {name} \(.*\): \w", said)
