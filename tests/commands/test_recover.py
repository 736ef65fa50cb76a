"""`retool recover` as a harness: arms, forks, resume, outputs, and the checker."""

import json
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.model_api import ModelAPI, Reply, serving
from helpers.services import serving as serving_sandbox

from retool_env.cli import main
from retool_env.evaluation.recover import pictures
from retool_env.evaluation.recover.records import ArmRecords, read_arms
from retool_env.interpreter import open_sandbox
from retool_env.problems import arithmetic
from retool_env.sandbox.server import create_app

pytest.importorskip("openai", reason="pip install 'retool-env[openai]'")

COMMAND = ["recover", "--env", "ReTool-Arithmetic-v0", "--model", "m", "--out", "found"]
KINDS = ("try_again", "stale")  # a first call is not eligible for `stale`
SIZE = ("--k", "2", "--m", "2", "--samples", "4", "--batch", "8")


@pytest.fixture(autouse=True)
def outside(tmp_path, monkeypatch, sandbox):
    """A folder of its own, one sandbox for all tests, and no pictures, which take seconds."""
    monkeypatch.chdir(tmp_path)
    opened = nullcontext(sandbox)
    monkeypatch.setattr("retool_env.interpreter.open_sandbox", lambda setting, rules: opened)
    monkeypatch.setattr("retool_env.evaluation.recover.page.draw", lambda results: {})


@pytest.fixture(autouse=True)
def suite(monkeypatch):
    """A suite of three problems, two kinds of faults and two rates, with forks at call 1."""
    source = arithmetic(split="test", difficulty=1)
    small = SimpleNamespace(
        problems=[source[i] for i in range(3)],
        hash="0123",
        kinds=KINDS,
        rates=(0.0, 0.5),
        seed=0,
        fork_call=lambda problem, sample: 1,
    )
    monkeypatch.setattr(
        "retool_env.evaluation.recover.suite.load_suite", lambda name, part, quick: small
    )
    return small


def model(conversation) -> Reply:
    """Computes once, answers the result, and gives up after an error; without a tool it guesses."""
    if not isinstance(conversation, str):
        conversation = "\n".join(str(message["content"]) for message in conversation)
    prompt, _, rest = conversation.rpartition("Compute ")
    terms, _, rest = rest.partition(".")
    if "<code>" not in prompt:
        return Reply("<answer>0</answer>")
    if "interpreter>" not in rest:
        return Reply(f"<code>print({terms})</code>")
    shown = re.search(r"<interpreter>\s*(\d+)\s*</interpreter>", rest)
    return Reply(f"<answer>{shown[1]}</answer>" if shown else "I give up")


def ran(url, *options, status=0, command=COMMAND):
    assert main([*command, "--api", url, *SIZE, *options]) == status


def recorded(folder="found"):
    return {record.key: record.transcript for record in read_arms(folder)}


def results(folder="found"):
    return json.loads(Path(folder, "results.json").read_text())


def figures(folder="found"):
    return {figure["key"]: figure for figure in results(folder)["figures"]}


def test_all_protocols_run_and_give_the_figures_of_a_known_agent(capsys, monkeypatch):
    monkeypatch.setattr("retool_env.evaluation.recover.page.draw", pictures.draw)
    with serving(ModelAPI(model)) as url:
        ran(url)
    keys = recorded()
    arms = {(key[0], key[1]) for key in keys}
    assert arms >= {("dose", "0"), ("dose", "0.5"), ("fork", "control"), ("fork", "try_again")}
    assert arms >= {("frequency", arm) for arm in ("text", "tool", "gone")}
    found, counts = figures(), results()["counts"]
    assert found["dose/0/accuracy"]["mean"] == 1.0
    assert found["effect/try_again"]["mean"] == -1.0
    assert found["frequency/gain"]["mean"] == 1.0
    assert counts["prefixes"] == {"fork": 6, "natural": 0}
    assert counts["not_eligible"] == {"stale": 6}
    assert counts["episodes"]["fork/stale"] == 6  # the first of each arm says so
    assert counts["episodes"]["fork/try_again"] == 12
    out = capsys.readouterr().out
    assert "6 pairs of prefix and fault are not eligible" in out
    assert "the two arms differ at fewer than 5 problems" in out  # there are 3 problems
    used = results()["usage"]["arms"]["fork/try_again"]
    assert used["episodes"] == 12 and used["usage"]["requests"] == 12  # the turns after the fork
    page = Path("found/page.html").read_text()
    assert "data:image/png;base64," in page and "://" not in page.replace(url, "")
    assert Path("found/recovery.png").read_bytes().startswith(b"\x89PNG")
    assert {"README.md", "eval.yaml"} <= {path.name for path in Path("found").iterdir()}


def test_a_resumed_run_does_each_job_once_and_equals_a_whole_run(capsys):
    """The disk is full at two moments: among whole episodes, and among forks."""
    append = ArmRecords.append
    api = ModelAPI(model)
    with serving(api) as url:
        for most in (20, 60):
            with pytest.MonkeyPatch.context() as patch:

                def full(self, record, most=most):
                    if len(self.ended) >= most:
                        raise OSError("no room")
                    append(self, record)

                patch.setattr(ArmRecords, "append", full)
                ran(url, *["--resume"] * Path("found").exists(), status=1)
            assert "give the command again with --resume --out found" in capsys.readouterr().err
            assert len(recorded()) == most and not Path("found/results.json").exists()
        ran(url, "--resume")
        ran(url, "--out", "whole")
        asked = len(api.requests)
        ran(url, "--resume")
    assert asked == len(api.requests)
    assert recorded() == recorded("whole")
    assert len(Path("found/episodes.jsonl").read_text().splitlines()) == len(recorded())
    assert figures() == figures("whole") and results()["counts"] == results("whole")["counts"]


@pytest.mark.slow
def test_a_killed_run_loses_no_finished_episode():
    api = ModelAPI(model, delay=0.1)
    with serving(api) as url:
        code = "import sys; from retool_env.cli import main; sys.exit(main(sys.argv[1:]))"
        own = ["--suite", "own", "--problems", "3", "--protocol", "frequency", *SIZE]
        command = [sys.executable, "-c", STUBBED + code, *COMMAND, "--api", url, *own]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        limit = time.monotonic() + 90
        while time.monotonic() < limit and process.poll() is None:
            if Path("found/episodes.jsonl").exists() and len(recorded()) >= 5:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        ended = recorded()
        assert 5 <= len(ended) < 36
        api.delay = 0.0
        ran(url, *own, "--resume")
    now = recorded()
    assert len(now) == 36 and {key: now[key] for key in ended} == ended
    assert len(Path("found/episodes.jsonl").read_text().splitlines()) == 36


STUBBED = """
import types
import retool_env.evaluation.recover.suite as module
module.load_suite = lambda name, part, quick: types.SimpleNamespace(
    problems=[], hash="", kinds=("try_again", "stale"), rates=(0.0,), seed=0, fork_call=lambda *_: 1
)
"""


def test_a_dry_run_says_the_size_of_each_protocol_and_asks_nobody(capsys):
    api = ModelAPI(model)
    with serving(api) as url:
        more = ("--price", "0,1000", "--tokens-per-second", "100", "--max-tokens", "100")
        ran(url, *more, "--dry-run")
    lines = dict(
        line.removeprefix("m: ").split(": ", 1) for line in capsys.readouterr().out.splitlines()
    )
    assert list(lines) == ["dose", "frequency", "fork", "natural", "all"]
    numbers = {name: int(line.split(" ")[0]) for name, line in lines.items()}
    # 3 problems: 2 rates x 2; 3 arms x 4; 2 parents x 3 arms x 2; 2 parents x 4 arms x 2
    assert numbers == {"dose": 12, "frequency": 36, "fork": 36, "natural": 48, "all": 132}
    assert "$" in lines["all"] and "19.8 minutes at 100 tokens/s at most" in lines["all"]
    assert not api.requests and not Path("found").exists()


@pytest.mark.parametrize("env", ["ReTool-Arithmetic-v0", "ReTool-AIME24-v0"])
def test_with_the_problems_of_a_suite_the_environment_loads_none(env, monkeypatch, capsys):
    def load(*_, **__):
        raise AssertionError("loaded")

    monkeypatch.setattr("retool_env.task.load_problems", load)
    command = ["recover", "--env", env, "--model", "m", "--api", "http://h/v1", "--dry-run"]
    assert main(command) == 0
    assert "dose: " in capsys.readouterr().out
    assert main([*command, "difficulty=3"]) == 1
    assert "difficulty: no such setting of an episode" in capsys.readouterr().err


def test_a_sandbox_server_runs_all_kinds_but_those_that_need_a_local_sandbox(
    suite, monkeypatch, capsys, sandbox
):
    suite.kinds = ("try_again", "missing_package")
    monkeypatch.setattr("retool_env.interpreter.open_sandbox", open_sandbox)
    with serving_sandbox(create_app(sandbox)) as server, serving(ModelAPI(model)) as url:
        ran(url, "--sandbox", server)
        assert "left out: missing_package, which no sandbox" in capsys.readouterr().out
        assert {key[1] for key in recorded() if key[0] == "fork"} == {"control", "try_again"}
        assert results()["kinds"] == ["try_again"]
        assert figures()["effect/try_again"]["mean"] == -1.0
        ran(url, "--resume", status=1)
        words = "kinds of faults: missing_package in one of the two"
        assert words in capsys.readouterr().err
        ran(url, "--sandbox", server, "session=true", "--out", "other", status=1)
        assert "has no sessions" in capsys.readouterr().err


@pytest.mark.parametrize("setting", [("max_calls=3",), ("--max-tokens", "9")])
def test_forks_have_the_budgets_of_their_parents(setting, capsys):
    with serving(ModelAPI(model)) as url:
        ran(url, "--protocol", "dose")
        ran(url, "--protocol", "fork", "--resume", *setting, status=1)
    name = setting[0].removeprefix("--").replace("-", "_").removesuffix("=3")
    assert f".{name}: {setting[-1][-1]}, not " in capsys.readouterr().err


def test_another_suite_or_seed_is_not_resumed_and_more_protocols_are(suite, capsys):
    with serving(ModelAPI(model)) as url:
        ran(url, "--protocol", "dose")
        assert {key[0] for key in recorded()} == {"dose"}
        ran(url, "--resume", "--seed", "1", status=1)
        assert "this one differs in seed: 1, not 0" in capsys.readouterr().err
        ran(url, "--protocol", "fork", "--resume")
        assert {key[0] for key in recorded()} == {"dose", "fork"}
        assert results()["protocols"] == ["dose", "fork"]
        suite.hash = "4567"
        ran(url, "--resume", status=1)
    assert "suite: hash 4567, not 0123" in capsys.readouterr().err


def test_failed_episodes_are_counted_and_run_again(capsys):
    broken = True

    def sometimes(conversation) -> Reply:
        return Reply("", finish="content_filter") if broken else model(conversation)

    with serving(ModelAPI(sometimes)) as url:
        ran(url, "--protocol", "fork", status=1)
        assert "6 of 6 episodes of m failed" in capsys.readouterr().err
        assert results()["counts"]["parents_failed"] == 6
        assert results()["counts"]["infrastructure_failures"] == {"dose/0": 6}
        broken = False
        ran(url, "--protocol", "fork", "--resume", "--retry-failed")
    assert results()["counts"]["prefixes"]["fork"] == 6


def test_parents_with_too_few_calls_are_counted(suite):
    suite.fork_call = lambda problem, sample: 1 + sample
    with serving(ModelAPI(model)) as url:
        ran(url, "--protocol", "fork")
    assert results()["counts"]["without_call"] == 3
    assert results()["counts"]["prefixes"]["fork"] == 3


def test_the_first_error_of_a_parent_has_four_arms():
    def careless(conversation) -> Reply:
        text = "\n".join(str(message["content"]) for message in conversation)
        if "Error" not in text.rpartition("Compute")[2]:
            return Reply("<code>1 / 0</code>")
        return model(conversation)

    def careful(conversation) -> Reply:
        return (
            Reply("<code>print(1)</code>")
            if "Error" in str(conversation[-1])
            else careless(conversation)
        )

    with serving(ModelAPI(careful)) as url:
        ran(url, "--protocol", "natural", "--problems", "1", "--k", "1", "max_calls=3")
    arms = {key[1] for key in recorded() if key[0] == "natural"}
    assert arms == {"keep", "drop", "bare", "mended"}
    assert results()["counts"]["prefixes"] == {"fork": 0, "natural": 1}
    assert "natural/keep" in figures()


def test_the_check_finds_changes_of_figures_verdicts_forks_and_programs(suite, capsys):
    with serving(ModelAPI(model)) as url:
        ran(url)
    check = ["recover", "--check", "found"]
    assert main(check) == 0
    assert (
        "ok   programs: 52 programs of 52 episodes ran again, 0 differ" in capsys.readouterr().out
    )
    kept = {name: Path("found", name).read_text() for name in ("results.json", "episodes.jsonl")}

    def failing(name, change):
        Path("found", name).write_text(change(kept[name]))
        assert main(check) == 1
        Path("found", name).write_text(kept[name])
        lines = capsys.readouterr().out.splitlines()
        return {line.split(":")[0][5:] for line in lines if line.startswith("FAIL")}

    def edited(change):
        def all_lines(text):
            lines = [json.loads(line) for line in text.splitlines()]
            changed = [record for record in map(change, lines) if record is not None]
            return "".join(json.dumps(record) + "\n" for record in changed)

        return all_lines

    def right(record):
        record["transcript"]["correct"] = True
        return record

    def another_output(record):
        for span in record["transcript"]["spans"]:
            if span["execution"] and record["arm"] == "0":
                span["execution"]["stdout"] += "1"
        return record

    def another_prefix(record):
        if record["arm"] == "control":
            record["transcript"]["spans"][1]["text"] += " "
        return record

    def without_a_prefix(record):
        forked = record["protocol"] == "fork" and record["problem"] == suite.problems[0].id
        return None if forked and record["parent"] == 0 else record

    def without_last(record):
        return None if (record["arm"], record["sample"]) == ("tool", 3) else record

    def without_the_fault(record):
        if record["arm"] == "try_again":
            execution = record["transcript"]["spans"][2 * record["call"]]["execution"]
            execution["stdout"] = execution["fault"]["real"]["stdout"]
        return record

    def another_answer(record):
        if record["transcript"]["answer"] is not None:
            record["transcript"]["answer"] = record["transcript"]["problem"]["answer"]
            record["transcript"]["correct"] = True
        return record

    def no_arm(protocol, arm, source):
        """The episodes of an arm replaced by copies of the episodes of another arm."""

        def change(text):
            lines = [json.loads(line) for line in text.splitlines()]
            by_arm = {}
            for line in lines:
                by_arm.setdefault((line["protocol"], line["arm"]), []).append(line)
            by_arm[protocol, arm] = [{**line, "arm": arm} for line in by_arm[protocol, source]]
            return "".join(json.dumps(line) + "\n" for some in by_arm.values() for line in some)

        return change

    assert "arms" in failing("episodes.jsonl", no_arm("frequency", "gone", "tool"))
    assert "arms" in failing("episodes.jsonl", no_arm("frequency", "text", "tool"))
    assert "arms" in failing("episodes.jsonl", no_arm("dose", "0.5", "0"))
    assert "faults" in failing("episodes.jsonl", edited(without_the_fault))
    assert "verdicts" in failing("episodes.jsonl", edited(another_answer))
    left_out = {"protocol": "fork", "problem": suite.problems[0].id, "parent": 0, "call": 1}
    Path("found/left_out.jsonl").write_text(json.dumps({**left_out, "reason": "?"}) + "\n")
    assert main(check) == 1 and "FAIL left out: " in capsys.readouterr().out
    Path("found/left_out.jsonl").unlink()
    sizes = '"samples": 4', '"samples": 0'
    kept["recover.json"] = Path("found/recover.json").read_text()
    assert "whole" in failing("recover.json", lambda text: text.replace('"natural",', ""))
    assert "whole" in failing("recover.json", lambda text: text.replace(*sizes))
    assert failing("results.json", lambda text: text.replace('"mean": 1.0', '"mean": 0.9')) == {
        "figures"
    }
    assert failing("episodes.jsonl", edited(right)) == {"verdicts", "figures"}
    assert "programs" in failing("episodes.jsonl", edited(another_output))
    assert "forks" in failing("episodes.jsonl", edited(another_prefix))
    assert "episodes" in failing("episodes.jsonl", edited(without_last))
    assert "episodes" in failing("episodes.jsonl", edited(without_a_prefix))


def test_several_models_have_one_table_and_one_heat_map(capsys):
    command = ["recover", "--env", "ReTool-Arithmetic-v0", "--model", "m", "--model", "m"]
    with serving(ModelAPI(model)) as url:
        ran(url, "--protocol", "fork", "--name", "both", command=command)
    folders = sorted(path for path in Path("runs/recover/both").iterdir() if path.is_dir())
    assert len(folders) == 2
    capsys.readouterr()
    given = [part for folder in folders for part in ("--report", str(folder))]
    assert main(["recover", *given, "--out", "page"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"\| 1\. m +\| 2\. m +\|", out) and "try_again* (explicit)" in out
    assert json.loads(Path("page/comparisons.json").read_text()) == {"pairs": []}  # 3 problems
    assert Path("page/page.html").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--check", "x", "--model", "m"], "give one of --model, --report and --check"),
        ([], "give one of --model, --report and --check"),
        (["--model", "m", "--m", "0"], "--m must be at least 1, not 0"),
        (
            ["--model", "m", "--tokens-per-second", "0"],
            "second must be above 0, not 0",
        ),
        (["--model", "m", "--tokens-per-second", "nan"], "must be above 0, not nan"),
        (["--model", "m", "--samples", "0"], "--samples must be at least 1, not 0"),
        (["--report", "nowhere"], "results.json was not found"),
        (["--check", "nowhere"], "recover.json was not found"),
    ],
)
def test_wrong_options_are_named(options, words, capsys):
    assert main(["recover", "--env", "ReTool-Arithmetic-v0", *options]) == 1
    assert words in capsys.readouterr().err
