"""One scripted model, evaluated by the command through APIs of seven dialects."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from helpers.api_dialects import DIALECTS, OVERFLOW, Dialect, DialectAPI
from helpers.model_api import Reply, serving

from retool_env.cli import main
from retool_env.evaluation import read_episodes
from retool_env.problems import arithmetic
from retool_env.transcript import StopReason

pytest.importorskip("openai", reason="pip install 'retool-env[openai]'")

KEY = "sk-a-key-of-thirty-characters-1"
WAYS = {"chat": (), "tools": ("--native-tools",)}
PLAIN = Dialect(stops="keeps")
PROBLEMS = 14
SOURCE = arithmetic(difficulty=1, split="test")
QUESTIONS = [SOURCE[i].question for i in range(PROBLEMS)]


class Script:
    """A model whose behaviour depends on the question alone, in seven ways.

    The same question always gets the same episode, whatever the order of the requests.
    """

    def __init__(self, native: bool):
        self.native = native
        self.filtered: set[int] = set()

    def __call__(self, messages) -> Reply:
        prompt, turn = messages[0]["content"], sum(m["role"] == "assistant" for m in messages)
        [index] = [i for i, question in enumerate(QUESTIONS) if question in prompt]
        return getattr(self, f"kind_{index % 7}")(index, turn)

    def code(self, program: str) -> Reply:
        if self.native:
            call = ("code_interpreter", json.dumps({"code": program}))
            return Reply("Let me see.", (call,), reasoning="I should compute.")
        return Reply(f"Let me see.\n<code>\n{program}\n</code>", reasoning="I should compute.")

    def kind_0(self, index, turn):
        return Reply("It is <answer>1</answer>", reasoning="Easy.")

    def kind_1(self, index, turn):
        right = f"So <answer>{SOURCE[index].answer}</answer>"
        return Reply(right) if turn else self.code("print(6 * 7)")

    def kind_2(self, index, turn):
        return Reply("I do not know.", reasoning="Hard.")

    def kind_3(self, index, turn):
        return Reply("First, " + "hm, " * 20, finish="length")

    def kind_4(self, index, turn):
        return Reply(refused=OVERFLOW) if turn else self.code("print(1)")

    def kind_5(self, index, turn):
        if index not in self.filtered:
            self.filtered.add(index)
            return Reply("I", finish="content_filter")
        return Reply("Then <answer>2</answer>") if turn else self.code("1 / 0")

    def kind_6(self, index, turn):
        return Reply("", reasoning="It is <answer>7</answer>, I think.")


@pytest.fixture(autouse=True)
def outside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MY_KEY", KEY)


def evaluated(api, way: str, *options: str):
    """The episodes of an evaluation, and its figures except those of the clock."""
    with serving(api) as url:
        command = ["eval", "--env", "ReTool-Arithmetic-v0", "--model", "m", "--api", url]
        command += ["--problems", str(PROBLEMS), "--k", "1", "--out", "found"]
        command += ["--sandbox", "unsafe", "--api-key-env", "MY_KEY", *WAYS[way], *options]
        assert main(command) == 0
    episodes = {each.key: each.transcript for each in read_episodes("found")}
    figures = json.loads(Path("found/figures.json").read_text())["figures"]
    figures = [each for each in figures if "seconds" not in each["key"]]
    shown = {
        key: (each.text, each.stop_reason, each.correct, [c.execution.outcome for c in each.calls])
        for key, each in episodes.items()
    }
    return shown, figures


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The episodes and figures of each way, through an API that leaves stop strings in the text."""
    found = {}
    for way in WAYS:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path_factory.mktemp(way))
            patch.setenv("MY_KEY", KEY)
            found[way] = evaluated(DialectAPI(Script(way == "tools"), dialect=PLAIN), way)
    return found


@pytest.mark.some(3)
@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=[pytest.mark.slow] * (way == "tools")) for way in WAYS]
)
@pytest.mark.parametrize("name", DIALECTS)
def test_every_dialect_gives_the_same_episodes_and_figures(name, way, reference, capsys, caplog):
    dialect = DIALECTS[name]
    api = DialectAPI(Script(way == "tools"), dialect=dialect, key=KEY)
    episodes, figures = evaluated(api, way, *dialect.options)
    expected, expected_figures = reference[way]
    assert episodes == expected
    assert figures == expected_figures
    record = json.loads(Path("found/eval.json").read_text())
    for field, value in dialect.sent.items():
        assert record["sampling"][field] == value
        assert all(request[field] == value for request in api.requests)
    fingerprint = dialect.more.get("system_fingerprint")
    assert record["answered_as"] == [{"model": "m-2026", "system_fingerprint": fingerprint}]
    usage = record["usage"]
    assert usage["in_reasoning"] == 2 * bool(dialect.reasoning)
    assert bool(usage["cached_tokens"]) == (name in ("openai", "vllm", "unknown"))
    assert usage["uncounted"] == 0
    said = [r.getMessage() for r in caplog.records if "in its reasoning alone" in r.getMessage()]
    assert len(said) == bool(dialect.reasoning)
    out = "".join(capsys.readouterr())
    assert (" in the reasoning alone)" in out) == bool(dialect.reasoning)
    files = "".join(path.read_text() for path in Path("found").iterdir())
    for text in (out, files, caplog.text):
        assert KEY not in text and KEY[:12] not in text


def test_the_script_covers_every_end(reference):
    for way in WAYS:
        reasons = Counter(reason for _, reason, *_ in reference[way][0].values())
        expected = {"ANSWERED", "VOID_TURN", "TOKEN_BUDGET", "STOPPED"}
        assert {StopReason[each] for each in expected} == set(reasons)
        assert sum(correct for _, _, correct, _ in reference[way][0].values()) == 2


@pytest.mark.parametrize("name", DIALECTS)
def test_a_first_prompt_that_is_too_long_is_an_error_that_names_it(name, capsys):
    dialect = DIALECTS[name]
    api = DialectAPI(lambda _: Reply(refused=OVERFLOW), dialect=dialect)
    with serving(api) as url:
        command = ["eval", "--env", "ReTool-Arithmetic-v0", "--model", "m", "--api", url]
        options = ["--text-only", "--problems", "1", *dialect.options]
        assert main([*command, *options]) == 1
    err = capsys.readouterr().err
    assert "the prompt of arithmetic" in err and "is too long for the context" in err
