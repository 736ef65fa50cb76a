"""The Gymnasium environment: registration, API contract, settings, programs in a real jail."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import warnings
from pathlib import Path

import gymnasium as gym
import pytest
from gymnasium.utils.env_checker import check_env
from helpers.competitions import CASES
from helpers.notebooks import Notebooks
from hypothesis import given, settings
from hypothesis import strategies as st

import retool_env
from retool_env import ReToolEnv, SandboxUnavailable, StopReason, check_transcript
from retool_env.errors import SettingsError
from retool_env.interpreter import SharedSandboxes
from retool_env.problems import Problem, ProblemList, ProblemsUnavailable
from retool_env.sandbox import Execution, Limits, Outcome, nsjail
from retool_env.spaces import AnyText, TurnText
from retool_env.task import make_task

ARITHMETIC = "ReTool-Arithmetic-v0"


@pytest.fixture(autouse=True)
def no_shared_sandbox(monkeypatch):
    """Each test has its own shared sandboxes."""
    monkeypatch.setattr("retool_env.env.shared_sandboxes", SharedSandboxes())


PROBLEMS = ProblemList(
    Problem(id=f"p{i}", question=f"{i} + 1?", answer=f"{i + 1}") for i in range(50)
)
DAPO_BEFORE = (
    "Solve the following math problem step by step. The last line of your response should be of "
    "the form Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)


class FakeSandbox:
    """A sandbox that returns its results in a cycle, and records the programs."""

    def __init__(self, *results: Execution) -> None:
        self.results = results or (Execution(Outcome.OK, "1\n"),)
        self.asked: list[tuple[str, Limits]] = []
        self.closed = 0

    def run(self, code: str, limits: Limits, **_: object) -> Execution:
        self.asked.append((code, limits))
        return self.results[(len(self.asked) - 1) % len(self.results)]

    def close(self) -> None:
        self.closed += 1


def make(sandbox=None, **settings) -> ReToolEnv:
    """An environment in its first episode, over a fake sandbox by default."""
    env = ReToolEnv(PROBLEMS, sandbox=sandbox or FakeSandbox(), **settings)
    env.reset(options={"problem_id": "p41"})
    return env


# --- ids ----------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Small files in the formats of the data sets, in the folder of the sources."""
    monkeypatch.setenv("RETOOL_DATA", str(tmp_path))
    prompt = [{"role": "user", "content": f"{DAPO_BEFORE}What is 6 * 7?"}]
    rows = {
        "aime24.jsonl": {"input": "What is 6 * 7?", "output": "42"},
        "aime25.jsonl": {"problem": "What is 6 * 8?", "answer": "48"},
        "gsm8k_train.jsonl": {"question": "Six sevens?", "answer": "6 * 7 = 42\n#### 42"},
        "math_levels_3_to_5_train.jsonl": {
            "problem": "$6 \\cdot 7$?",
            "answer": "42",
            "level": 3,
            "subject": "Algebra",
        },
        "dapo_math_17k.jsonl": {"prompt": prompt, "reward_model": {"ground_truth": "42"}},
        "own.jsonl": {"question": "What is 6 * 7?", "answer": 42},
    }
    rows |= {f"{file}.jsonl": row for _, _, file, row, *_ in CASES}
    for name, row in rows.items():
        (tmp_path / name).write_text(json.dumps(row) + "\n")
    return tmp_path


def of_id(id, files, **settings):
    if id == "ReTool-JSONL-v0":
        settings["path"] = files / "own.jsonl"
    return gym.make(id, **settings)


@pytest.mark.some(14)
@pytest.mark.parametrize("space", [TurnText, AnyText])
@pytest.mark.parametrize("id", retool_env.ENVIRONMENTS)
def test_every_id_passes_gymnasiums_checker(id, space, files):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = of_id(id, files)
        assert isinstance(env.action_space, TurnText)
        env.unwrapped.action_space = space()
        check_env(env.unwrapped)
        env.close()


@pytest.mark.parametrize("turn", TurnText._TURNS)
def test_the_checker_is_content_with_every_kind_of_turn(turn):
    class OneTurn(TurnText):
        _TURNS = (turn,)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(ARITHMETIC)
        env.unwrapped.action_space = OneTurn()
        check_env(env.unwrapped)
        env.close()


@pytest.mark.some(10)
@pytest.mark.parametrize("id", retool_env.ENVIRONMENTS)
def test_every_id_is_an_episode_that_a_right_answer_wins(id, files):
    env = of_id(id, files)
    observation, info = env.reset(seed=3)
    problem = info["transcript"].problem
    assert problem.question in observation and problem.id == info["problem_id"]
    assert DAPO_BEFORE.strip() not in observation
    *_, truncated, info = env.step("<code>print(1)</code>")
    assert not truncated and info["outcome"] is Outcome.OK
    _, reward, terminated, truncated, info = env.step(f"<answer>{problem.answer}</answer>")
    assert (reward, terminated, truncated, info["correct"]) == (1.0, True, False, True)
    env.close()


def test_aime_of_a_year_holds_that_year(files):
    for id, years in (("ReTool-AIME-v0", {2024, 2025}), ("ReTool-AIME24-v0", {2024})):
        _, source = make_task(id)
        assert {problem.metadata["year"] for problem in source} == years


def test_no_time_limit_is_applied_by_default():
    env = gym.make(ARITHMETIC, interpreter=False)
    assert env.spec.max_episode_steps is None and "TimeLimit" not in str(env)


def run_python(code: str, folder) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_module_prefix_registers_in_a_fresh_process(tmp_path):
    code = (
        "import gymnasium as gym\n"
        f"env = gym.make('retool_env:{ARITHMETIC}', difficulty=2)\n"
        "print(env.reset(seed=1)[1]['problem_id'])"
    )
    assert run_python(code, tmp_path).startswith("arithmetic/train-seed0-level2/")


def test_neither_importing_nor_making_needs_the_heavy_libraries(tmp_path):
    code = (
        "import sys, gymnasium as gym, retool_env\n"
        f"env = gym.make('{ARITHMETIC}'); env.reset(seed=1); env.step('<code>print(1)</code>')\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'trl'} & set(sys.modules)))"
    )
    assert run_python(code, tmp_path) == "[]\n"


def test_missing_data_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("RETOOL_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(ProblemsUnavailable, match="RETOOL_DATA"):
        gym.make("ReTool-GSM8K-v0")
    with pytest.raises(ProblemsUnavailable, match=r"no\.jsonl"):
        gym.make("ReTool-JSONL-v0", path="no.jsonl")


# --- the API's contract -------------------------------------------------------------------------

RESULTS = [
    Execution(Outcome.OK, "1\n"),
    Execution(Outcome.RUNTIME_ERROR, "", "NameError: name 'a' is not defined"),
    Execution(Outcome.TIMEOUT, "so far", "time limit"),
    Execution(Outcome.INFRASTRUCTURE, "", "no jail"),
]
INFO_KEYS = {"problem_id", "calls", "outcome", "stop_reason", "correct", "transcript"}


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**31),
    results=st.lists(st.sampled_from(RESULTS), min_size=1, max_size=4),
    strange=st.lists(st.booleans(), min_size=12, max_size=12),
    void_turn=st.sampled_from(["end", "continue"]),
    max_characters=st.integers(20, 600),
    max_seconds=st.sampled_from([None, 1e-9, 3600.0]),
)
def test_random_episodes_keep_the_contract(
    seed, results, strange, void_turn, max_characters, max_seconds
):
    limits = dict(void_turn=void_turn, max_characters=max_characters, max_seconds=max_seconds)
    env = make(FakeSandbox(*results), max_calls=3, **limits)
    turns, anything = TurnText(seed), AnyText(seed)
    observation, _ = env.reset(seed=seed)
    terminated = truncated = False
    for odd in strange:
        before = observation
        action = (anything if odd else turns).sample()
        observation, reward, terminated, truncated, info = env.step(action)
        reason = info["stop_reason"]
        assert observation.startswith(before) and observation in env.observation_space
        assert type(terminated) is type(truncated) is bool and not (terminated and truncated)
        assert set(info) == INFO_KEYS and info["transcript"].text == observation
        assert info["calls"] == len(info["transcript"].calls) <= 3
        check_transcript(info["transcript"])
        if terminated or truncated:
            assert isinstance(reason, StopReason) and reason.terminated == terminated
            unscored = reason is StopReason.INFRASTRUCTURE
            assert (reward == 0.0) if unscored else (reward == (1.0 if info["correct"] else -1.0))
            break
        assert reason is None and reward == 0.0 and info["correct"] is None
    if terminated or truncated:
        with pytest.raises(gym.error.ResetNeeded):
            env.step("more")
    else:
        assert void_turn == "continue"  # no other setting allows 12 turns with 3 calls


ACTIONS = (
    "By hand: <code>import os\nprint(6 * 7)</code>",
    "<code>print(x)</code>",
    "<code></code>",
    "π? <code>import warnings; warnings.warn('odd'); print('π')</code>",
    "<answer>\\boxed{42}</answer>",
)


def play(env, seed, options=None):
    observation, info = env.reset(seed=seed, options=options)
    record = [(observation, info)]
    for action in ACTIONS:
        record.append(env.step(action))
    return record


def test_same_seed_options_and_actions_are_the_same_episode(sandbox):
    env = ReToolEnv(PROBLEMS, sandbox=sandbox)
    first, again = play(env, 7), play(env, 7)
    assert first == again
    assert play(ReToolEnv(PROBLEMS, sandbox=sandbox), 7) == first
    options = {"problem_id": "p3"}
    assert play(env, 7, options) == play(env, 8, options) != first
    infos = [step[-1] for step in (*first, *again)]
    assert len({id(info) for info in infos}) == len(infos)
    assert options == {"problem_id": "p3"}  # the caller's mapping is unchanged


def test_wall_clock_times_make_no_difference_to_infos():
    slow = Execution(Outcome.OK, "1\n", duration=3.0)
    infos = []
    for result in (slow, Execution(Outcome.OK, "1\n", duration=0.1)):
        env = make(FakeSandbox(result))
        *_, info = env.step("<code>a</code>")
        infos.append(info)
    assert infos[0] == infos[1]
    seconds = [info["transcript"].spans[-1].seconds for info in infos]
    assert seconds == [3.0, 0.1]
    assert not any(isinstance(value, float) for value in infos[0].values())


def test_an_info_is_a_snapshot():
    env = make()
    _, before = env.reset(seed=1)
    copy = dict(before)
    env.step("<code>a</code>")
    assert before == copy and before["calls"] == 0 and before["outcome"] is None


def test_seeds_draw_different_problems_and_resets_go_on_from_them():
    env = make()
    drawn = [env.reset(seed=seed)[1]["problem_id"] for seed in range(20)]
    assert len(set(drawn)) > 10
    sequences = []
    for _ in range(2):
        env.reset(seed=5)
        sequences.append([env.reset()[1]["problem_id"] for _ in range(10)])
    assert sequences[0] == sequences[1] and len(set(sequences[0])) > 3


def test_reset_options():
    env = make()
    observation, info = env.reset(options={"problem_id": "p9"})
    assert info["problem_id"] == "p9" and "9 + 1?" in observation
    with pytest.raises(KeyError, match="nearest is 'p9'"):
        env.reset(options={"problem_id": "p9x"})
    with pytest.raises(SettingsError, match="the option problem_id must be a text, not 5"):
        env.reset(options={"problem_id": 5})
    with pytest.raises(ValueError, match=r"'problem'.*the options are 'problem_id' and 'rollout'"):
        env.reset(options={"problem": "p9"})


def test_steps_without_an_episode_are_refused():
    env = ReToolEnv(PROBLEMS, sandbox=FakeSandbox())
    with pytest.raises(gym.error.ResetNeeded, match="reset"):
        env.step("<answer>1</answer>")
    env.reset()
    env.step("<answer>1</answer>")
    with pytest.raises(gym.error.ResetNeeded, match="reset"):
        env.step("<answer>1</answer>")
    env.reset()
    assert env.step("<answer>1</answer>")[2]


@pytest.mark.parametrize("action", [None, 3, b"<answer>1</answer>", ["<answer>1</answer>"]])
def test_an_action_that_is_no_string_is_refused_and_the_episode_goes_on(action):
    env = make()
    with pytest.raises(TypeError, match=f"string, not {type(action).__name__}"):
        env.step(action)
    assert env.step("<answer>42</answer>")[1] == 1.0


def test_empty_and_unicode_actions(sandbox):
    env = make(sandbox, void_turn="continue")
    observation, *_ = env.step("π ≈ 3, 𝄞\u202e <code>print('∑𝄞')</code>")
    assert "𝄞\u202e <code>" in observation and observation.endswith("\n∑𝄞\n</interpreter>\n\n")
    observation, *_, info = env.step("<code>print('\ud800')</code>")  # UTF-8 can't encode it
    assert info["outcome"] is Outcome.SYNTAX_ERROR and "UnicodeEncodeError" in observation
    _, reward, terminated, truncated, info = env.step("")
    assert (reward, terminated, truncated) == (-1.0, True, False)
    assert info["stop_reason"] is StopReason.STOPPED


# --- rendering ----------------------------------------------------------------------------------


def test_ansi_rendering_is_the_transcript():
    env = ReToolEnv(PROBLEMS, sandbox=FakeSandbox(), render_mode="ansi")
    assert env.render() == ""
    observation, _ = env.reset()
    assert env.render() == observation
    observation, *_ = env.step("<code>a</code>")
    assert env.render() == observation and observation.endswith("</interpreter>\n\n")


def test_human_rendering_prints_each_piece_once(capsys):
    env = ReToolEnv(PROBLEMS, sandbox=FakeSandbox(), render_mode="human")
    observation, _ = env.reset()
    assert capsys.readouterr().out == observation
    env.step("<code>a</code>")
    assert capsys.readouterr().out == "<code>a</code>\n<interpreter>\n1\n</interpreter>\n\n"
    env.step("<answer>no</answer>")
    assert capsys.readouterr().out == "<answer>no</answer>\n[answered, reward -1.0]\n"
    assert env.render() is None and capsys.readouterr().out == ""
    observation, _ = env.reset()
    assert capsys.readouterr().out == observation


def test_another_render_mode_is_refused():
    with pytest.raises(ValueError, match="'human', 'ansi' or None, not 'rgb_array'"):
        ReToolEnv(PROBLEMS, sandbox=FakeSandbox(), render_mode="rgb_array")


# --- settings -----------------------------------------------------------------------------------


def test_unknown_settings_are_answered_with_the_known_ones(files):
    for id in retool_env.ENVIRONMENTS:
        with pytest.raises(TypeError, match=r"'max_call'.*max_calls, announce_calls.*limits"):
            of_id(id, files, max_call=3)
    with pytest.raises(TypeError, match=r"difficulty, size, split.*max_calls"):
        gym.make(ARITHMETIC, dificulty=3)
    with pytest.raises(TypeError, match=r"'difficulty'.*max_calls"):
        ReToolEnv(PROBLEMS, sandbox=FakeSandbox(), difficulty=3)
    with pytest.raises(ValueError, match=r"max_tokens .*set max_characters instead"):
        gym.make(ARITHMETIC, max_tokens=100)
    with pytest.raises(ValueError, match="no source of problems is called 'aimee'"):
        ReToolEnv("aimee", sandbox=FakeSandbox())


def test_without_an_interpreter_no_sandbox_is_made_and_code_is_text(monkeypatch):
    def refuse(name="nsjail"):
        raise AssertionError("a sandbox was made")

    monkeypatch.setattr("retool_env.interpreter.make_sandbox", refuse)
    env = gym.make(ARITHMETIC, interpreter=False)
    observation, _ = env.reset(seed=1)
    assert "interpreter" not in observation and "<code>" not in observation
    observation, _, terminated, _, info = env.step("<code>print(1)</code>")
    assert terminated and info["stop_reason"] is StopReason.VOID_TURN and info["calls"] == 0
    _, info = env.reset(seed=1)
    answer = info["transcript"].problem.answer
    assert env.step(f"<code>1</code> <answer>{answer}</answer>")[1] == 1.0
    env.close()


def test_a_program_in_the_last_allowed_call_still_runs_and_is_shown(sandbox):
    env = make(sandbox, max_calls=1)
    observation, _, terminated, truncated, info = env.step("<code>print(6 * 7)</code>")
    assert observation.endswith("\n42\n</interpreter>\n\n")
    assert not terminated and not truncated and info["calls"] == 1
    _, reward, terminated, truncated, info = env.step("<code>print(6 * 7)</code>")
    assert (reward, terminated, truncated) == (-1.0, True, False)
    assert info["stop_reason"] is StopReason.CALL_LIMIT and info["calls"] == 1


def test_no_calls_at_all_may_be_allowed():
    fake = FakeSandbox()
    env = make(fake, max_calls=0)
    *_, info = env.step("<code>a</code>")
    assert info["stop_reason"] is StopReason.CALL_LIMIT and not fake.asked


def test_the_character_limit():
    env = make(max_characters=10)
    observation, reward, terminated, truncated, info = env.step("a long thought, <code>a</code>")
    assert observation.endswith("a long tho") and (terminated, truncated) == (False, True)
    assert info["stop_reason"] is StopReason.CHARACTER_BUDGET and reward == -1.0


def test_the_time_limit():
    env = make(max_seconds=1e-9)
    _, reward, terminated, truncated, info = env.step("<answer>42</answer>")
    assert info["stop_reason"] is StopReason.TIME_BUDGET
    assert (reward, terminated, truncated, info["correct"]) == (-1.0, False, True, False)


@pytest.mark.parametrize(
    ("where", "shown"),
    [
        ("head", "[... 1999980 characters cut ...]\n" + "b" * 19 + "\n"),
        ("tail", "a" * 20 + "\n[... 1999980 characters cut ...]\n"),
        ("middle", "a" * 10 + "\n[... 1999980 characters cut ...]\n" + "b" * 9 + "\n"),
    ],
)
def test_two_megabytes_of_output_are_drained_and_cut_as_set(sandbox, where, shown):
    settings = {"output_characters": 20, "output_cut": where, "limits": {"output_bytes": 4 << 20}}
    env = make(sandbox, **settings)
    observation, *_, info = env.step("<code>print('a' * 1_000_000 + 'b' * 999_999)</code>")
    assert info["outcome"] is Outcome.OK
    assert observation.endswith(f"</code>\n<interpreter>\n{shown}</interpreter>\n\n")


def test_void_turns_may_go_on():
    env = make(void_turn="continue")
    observation, _, terminated, truncated, _ = env.step("hmm")
    assert observation.endswith("Go on.]\n\n") and not terminated and not truncated
    assert make().step("hmm")[4]["stop_reason"] is StopReason.VOID_TURN


def test_the_reward_is_a_preset_or_a_function():
    for reward, expected in (("paper", -1.0), ("verl", -0.9), (lambda t: len(t.text), None)):
        env = make(reward=reward)
        env.step("<code>a</code>")
        observation, earned, *_, info = env.step("<answer>1</answer>")
        assert earned == pytest.approx(len(observation) if expected is None else expected)
        assert type(earned) is float and info["transcript"].reward == earned
    with pytest.raises(ValueError, match="presets are paper, verl"):
        make(reward="none")


def test_the_prompt_is_a_text_or_a_json_file(tmp_path):
    env = make(prompt_template="Q: {query}\nIn braces {{x}}.\n")
    assert env.reset(options={"problem_id": "p1"})[0] == "Q: 1 + 1?\nIn braces {x}.\n"
    path = tmp_path / "prompt.json"
    path.write_text(json.dumps({"retool": "From a file: {query}"}))
    env = make(prompt_template=str(path))
    assert env.reset(options={"problem_id": "p1"})[0] == "From a file: 1 + 1?"
    with pytest.raises(ValueError, match="query"):
        make(prompt_template="{query} {other}")


def test_limits_reach_the_sandbox():
    fake = FakeSandbox()
    make(fake, limits={"wall_seconds": 1, "memory_mb": 128}).step("<code>a</code>")
    make(fake, limits=Limits(tmp_mb=3)).step("<code>b</code>")
    assert fake.asked == [("a", Limits(wall_seconds=1, memory_mb=128)), ("b", Limits(tmp_mb=3))]


def test_a_sleeping_program_meets_its_limit_and_is_told(sandbox):
    env = make(sandbox, limits={"wall_seconds": 1})
    program = "<code>print('before', flush=True); import time; time.sleep(60)</code>"
    observation, _, terminated, truncated, info = env.step(program)
    assert info["outcome"] is Outcome.TIMEOUT and not terminated and not truncated
    assert "before\ntime limit: the program ran for more than 1 s\n" in observation


# --- programs and answers -----------------------------------------------------------------------


def test_a_printed_box_earns_nothing(sandbox):
    env = make(sandbox)
    program = "print('<answer>' + chr(92) + 'boxed{42}</' + 'answer>')"
    observation, reward, terminated, truncated, info = env.step(f"<code>{program}</code>")
    assert "<answer>\\boxed{42}</answer>" in observation.rpartition("<interpreter>")[2]
    assert (reward, terminated, truncated) == (0.0, False, False) and info["correct"] is None
    _, reward, *_, info = env.step("As the interpreter says.")
    assert reward == -1.0 and info["correct"] is False and info["transcript"].answer is None


@pytest.mark.parametrize("block", ["", "\n", "\n```python\n\n```\n", "# only a comment"])
def test_an_empty_code_block_is_a_failed_call(block):
    fake = FakeSandbox()
    observation, *_, info = make(fake).step(f"<code>{block}</code>")
    assert info["outcome"] is Outcome.SYNTAX_ERROR and info["calls"] == 1 and not fake.asked
    assert "SyntaxError" in observation.rpartition("<interpreter>")[2]


def test_a_warning_loses_no_output_and_is_no_failure(sandbox):
    program = (
        "import sys, warnings\nwarnings.warn('odd')\nprint('to stderr', file=sys.stderr)\nprint(42)"
    )
    observation, *_, info = make(sandbox).step(f"<code>{program}</code>")
    assert info["outcome"] is Outcome.OK
    assert observation.endswith("<interpreter>\n42\n</interpreter>\n\n")


def test_functions_call_each_other_and_the_last_line_is_left_alone(sandbox):
    program = (
        "def even(n):\n    return n == 0 or odd(n - 1)\n\n"
        "def odd(n):\n    return n != 0 and even(n - 1)\n\n"
        "values = [even(n) for n in range(3)]\n"
        "for value in values:\n    print(value)\n"
    )
    observation, *_ = make(sandbox).step(f"<code>\n```python\n{program}```\n</code>")
    assert observation.endswith("<interpreter>\nTrue\nFalse\nTrue\n</interpreter>\n\n")


FAILS = "<code>print(1)\nprint(1 / 0)</code>"
FRAMES = (
    'Traceback (most recent call last):\n  File "<program>", line 2, in <module>\n'
    "    print(1 / 0)\n"
)


@pytest.mark.parametrize(
    ("settings", "frames"),
    [({}, FRAMES), ({"errors": "traceback"}, FRAMES), ({"errors": "last_line"}, "")],
)
def test_an_error_is_shown_as_set_after_what_was_printed(sandbox, settings, frames):
    observation, *_, info = make(sandbox, **settings).step(FAILS)
    assert info["outcome"] is Outcome.RUNTIME_ERROR
    assert observation.endswith(
        f"<interpreter>\n1\n{frames}ZeroDivisionError: division by zero\n</interpreter>\n\n"
    )
    execution = info["transcript"].calls[0].execution
    assert execution.traceback == f"{FRAMES}{execution.error}"  # the record has both in any case


def test_the_error_is_kept_where_it_and_the_output_do_not_both_fit(sandbox):
    env = make(sandbox, output_characters=40, errors="last_line")
    observation, *_ = env.step("<code>print('a' * 999)\nprint(1 / 0)</code>")
    assert observation.endswith(
        "<interpreter>\naaa\n[... 995 characters cut ...]\na\n"
        "ZeroDivisionError: division by zero\n</interpreter>\n\n"
    )


def test_programs_share_no_state(sandbox):
    env = make(sandbox)
    env.step("<code>x = 1</code>")
    observation, *_ = env.step("<code>print(x)</code>")
    assert "NameError" in observation.rpartition("<interpreter>")[2]


def test_in_a_session_programs_share_state_and_episodes_do_not(sandbox):
    env = make(sandbox, session=True)
    env.step("<code>import math; x = 6</code>")
    observation, *_, info = env.step("<code>print(math.prod([x, 7]))</code>")
    assert observation.endswith("\n42\n</interpreter>\n\n") and info["calls"] == 2
    env.reset()
    observation, *_ = env.step("<code>print(x)</code>")
    assert "NameError" in observation
    env.close()


def test_a_session_that_a_block_ends_says_so_and_the_next_begins_anew(sandbox):
    env = make(sandbox, session=True)
    env.step("<code>x = 6</code>")
    observation, *_ = env.step("<code>import os; os._exit(3)</code>")
    assert "exit status 3; the session was ended by that" in observation
    assert "NameError" in env.step("<code>print(x)</code>")[0]
    env.close()


@pytest.mark.parametrize("session", [True, False])
def test_the_value_of_a_last_line_is_shown_where_that_is_set(sandbox, session):
    for display, shown in ((True, "1\n42\n"), (False, "1\n")):
        env = make(sandbox, display=display, session=session)
        observation, *_ = env.step("<code>print(1)\n6 * 7</code>")
        assert observation.endswith(f"<interpreter>\n{shown}</interpreter>\n\n")
        env.close()


ENDS = {
    "answered": ("<answer>42</answer>", {}, StopReason.ANSWERED),
    "stopped": ("", {}, StopReason.STOPPED),
    "void": ("hm", {}, StopReason.VOID_TURN),
    "no more calls": ("<code>c</code>", {"max_calls": 1}, StopReason.CALL_LIMIT),
    "too long": ("b" * 300, {"max_characters": 200}, StopReason.CHARACTER_BUDGET),
    "too long a result": (
        "<code>long</code>",
        {"max_characters": 200},
        StopReason.CHARACTER_BUDGET,
    ),
    "failure": ("<code>failure</code>", {}, StopReason.INFRASTRUCTURE),
}


def fails_or_prints(code: str) -> Execution:
    if code == "failure":
        return Execution(Outcome.INFRASTRUCTURE, "", "no jail")
    return Execution(Outcome.OK, "y" * 300 if code == "long" else "1\n")


@pytest.mark.parametrize("name", ENDS)
def test_a_session_ends_with_its_episode(name):
    action, rules, reason = ENDS[name]
    box = Notebooks(fails_or_prints)
    env = make(box, session=True, **rules)
    assert not env.step("<code>a</code>")[2] and len(box.open) == 1
    *_, info = env.step(action)
    assert info["stop_reason"] is reason and not box.open
    env.reset()
    env.step("<code>b</code>")
    assert [notebook.blocks[-1] for notebook in box.used][-1] == "b" and len(box.used) == 2


@pytest.mark.parametrize("end", ["reset", "close"])
def test_a_session_ends_in_mid_episode(end):
    box = Notebooks()
    env = make(box, session=True)
    env.step("<code>a</code>")
    assert len(box.open) == 1
    getattr(env, end)()
    assert not box.open and not box.closed
    if end == "reset":  # and the next episode has a new session
        assert "session 2, block 1: b\n" in env.step("<code>b</code>")[0]


def test_a_session_outlives_an_error_of_the_sandbox_only_until_the_next_reset():
    def refuse(code):
        raise SandboxUnavailable("the token was refused")

    box = Notebooks(refuse)
    env = make(box, session=True)
    with pytest.raises(SandboxUnavailable, match="token"):
        env.step("<code>a</code>")
    env.reset()
    assert not box.open


STOPPED = "the last step was stopped before its end, by Ctrl-C or an error.*: call reset"


@pytest.mark.parametrize("session", [False, True])
def test_after_ctrl_c_the_next_step_says_what_to_do(sandbox, session):
    """A real signal stops a real program. No process is left, and a reset begins anew."""
    env = ReToolEnv(PROBLEMS, sandbox=sandbox, session=session, limits={"wall_seconds": 60})
    env.reset(options={"problem_id": "p41"})
    env.step("<code>x = 1</code>")
    before = len(os.listdir("/proc/self/fd"))
    threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        env.step("<code>import time; time.sleep(60)</code>")
    for _ in range(2):
        with pytest.raises(gym.error.ResetNeeded, match=STOPPED) as needed:
            env.step("<answer>42</answer>")
        assert "RunProgram" not in str(needed.value)
    assert len(os.listdir("/proc/self/fd")) <= before + 4
    env.reset(options={"problem_id": "p41"})
    assert env.step("<code>print(6 * 7)</code>")[4]["outcome"] is Outcome.OK
    assert env.step("<answer>42</answer>")[1] == 1.0
    env.close()


class Failing(FakeSandbox):
    """Raises a given error once."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.errors = [error]

    def run(self, *arguments, **settings):
        if self.errors:
            raise self.errors.pop()
        return super().run(*arguments, **settings)


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SandboxUnavailable("the token was refused"), OSError("x")]
)
def test_after_an_error_of_the_sandbox_the_next_step_says_what_to_do(error):
    env = make(Failing(error))
    with pytest.raises(type(error)):
        env.step("<code>a</code>")
    with pytest.raises(gym.error.ResetNeeded, match=STOPPED):
        env.step("<code>a</code>")
    assert env.reset(options={"problem_id": "p41"})[1]["calls"] == 0
    assert env.step("<code>a</code>")[4]["calls"] == 1


def test_a_step_that_was_begun_by_halves_is_ended_or_reset():
    env = make()
    need = env.begin_step("<code>a</code>")
    with pytest.raises(gym.error.ResetNeeded, match=STOPPED):
        env.begin_step("<code>b</code>")
    assert env.end_step(env.resolve(need))[4]["calls"] == 1
    assert env.step("<code>b</code>")[4]["calls"] == 2


def test_an_action_that_is_refused_stops_nothing():
    env = make()
    with pytest.raises(TypeError):
        env.step(3)
    assert env.step("<code>b</code>")[4]["calls"] == 1


@pytest.mark.parametrize(
    "returned",
    [None, "1", "good", True, float("nan"), float("inf"), -math.inf, 10**400, [1.0], 1j, {}],
    ids=repr,
)
def test_a_reward_that_is_no_number_names_the_function(returned):
    def my_reward(transcript):
        return returned

    env = make(reward=my_reward)
    with pytest.raises(TypeError, match=r"my_reward must return a finite number, not ") as refused:
        env.step("<answer>42</answer>")
    assert f"{returned!r:.80}" in str(refused.value)
    with pytest.raises(gym.error.ResetNeeded, match=STOPPED):
        env.step("<answer>42</answer>")


def test_a_sandbox_without_sessions_is_refused_when_the_environment_is_made():
    class Without(Notebooks):
        def session(self, limits, *, display=False):
            raise SandboxUnavailable("this sandbox has no sessions")

    with pytest.raises(SandboxUnavailable, match="has no sessions"):
        make(Without(), session=True)
    make(Without())
    make(Without(), session=True, interpreter=False)
    with pytest.raises(ValueError, match="need a sandbox"):
        ReToolEnv(PROBLEMS, sandbox=None)


def test_the_sandbox_may_be_given_by_make_sandboxs_arguments():
    sandbox = {"name": "nsjail", "packages": ["numpy"], "guests": 1}
    env = gym.make(ARITHMETIC, sandbox=sandbox, session=True, errors="last_line")
    assert env.unwrapped.rules.session and env.unwrapped.sandbox.packages == ("numpy",)
    env.reset(seed=1)
    observation, *_ = env.step("<code>import sympy</code>")
    assert "<interpreter>\nModuleNotFoundError: No module named 'sympy'\n" in observation
    env.close()
    with pytest.raises(RuntimeError, match="closed"):
        env.unwrapped.sandbox.run("1")


def test_an_infrastructure_failure_is_truncated_unscored_and_unseen():
    env = make(FakeSandbox(Execution(Outcome.INFRASTRUCTURE, "half", "the jail did not start")))
    before = env.reset()[0]
    observation, reward, terminated, truncated, info = env.step("<code>a</code>")
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert info["stop_reason"] is StopReason.INFRASTRUCTURE
    assert info["correct"] is None and info["transcript"].reward is None
    assert observation == f"{before}<code>a</code>"


def test_without_a_jail_there_is_a_refusal_and_no_fallback(monkeypatch):
    monkeypatch.setattr(nsjail, "find_binary", lambda _: "/bin/false")
    with pytest.raises(SandboxUnavailable, match="nsjail"):
        gym.make(ARITHMETIC)
    with pytest.raises(SandboxUnavailable):
        gym.make_vec(ARITHMETIC, num_envs=2)


def test_the_unsafe_sandbox_comes_by_name_only():
    with pytest.warns(RuntimeWarning, match="does not isolate"):
        env = gym.make(ARITHMETIC, sandbox="unsafe")
    env.reset(seed=1)
    assert env.step("<code>print(6 * 7)</code>")[4]["outcome"] is Outcome.OK
    env.close()


def test_close_ends_the_own_sandbox_alone_and_may_be_repeated(monkeypatch):
    fake = FakeSandbox()
    env = make(fake)
    env.close()
    assert fake.closed == 0
    monkeypatch.setattr("retool_env.interpreter.make_sandbox", lambda name: fake)
    env = ReToolEnv(PROBLEMS)
    env.close()
    env.close()
    assert fake.closed >= 1


def test_a_closed_environment_says_so():
    env = make()
    env.close()
    for call in (env.reset, lambda: env.step("<code>a</code>")):
        with pytest.raises(gym.error.ClosedEnvironmentError, match="make a new one"):
            call()


def test_environments_of_a_setting_share_a_sandbox_until_the_last_is_closed():
    envs = [gym.make(ARITHMETIC, sandbox=box) for box in ("nsjail", {"name": "nsjail"})]
    envs += [ReToolEnv(PROBLEMS, session=True), gym.make(ARITHMETIC, interpreter=False)]
    other = gym.make(ARITHMETIC, sandbox={"guests": 1})
    first, second, third, none = (env.unwrapped.sandbox for env in envs)
    assert first is second is third and none is None
    assert other.unwrapped.sandbox is not first
    own = ReToolEnv(PROBLEMS, sandbox=first)  # the caller owns the sandbox
    own.reset()
    for env in envs[:2]:
        env.close()
        env.close()
    envs[2].reset()
    assert envs[2].step("<code>print(1)</code>")[4]["outcome"] is Outcome.OK
    assert own.step("<code>print(1)</code>")[4]["outcome"] is Outcome.OK
    own.close()
    envs[2].close()
    with pytest.raises(RuntimeError, match="closed"):
        first.run("1")
    other.reset()
    assert other.step("<code>print(1)</code>")[4]["outcome"] is Outcome.OK
    other.close()


def test_a_copy_of_an_environment_has_a_sandbox_of_its_own():
    env = gym.make(ARITHMETIC, sandbox={"guests": 1}).unwrapped
    env.reset(seed=1)
    copied = copy.deepcopy(env)
    assert copied.sandbox is not env.sandbox
    copied.close()
    assert env.step("<code>print(1)</code>")[4]["outcome"] is Outcome.OK
    env.close()


COUNTS = """
import gc, logging, os, resource, sys, time
import gymnasium as gym
import retool_env
sys.path.append({tree!r})
from helpers.tree import descendants, descriptors, settled_descriptors

ID = "ReTool-Arithmetic-v0"

def begun(**settings):
    env = gym.make(ID, **settings)
    env.reset(seed=1)
    *_, info = env.step("<code>print(1)</code>")
    assert info["outcome"] == "ok", info
    return env

def settled():
    # Both must be stable for half a second: an ended process may still be read to its end.
    gc.collect()
    deadline = time.monotonic() + 20
    found, since = None, time.monotonic()
    while time.monotonic() < min(deadline, since + 0.5):
        now = descriptors(), len(descendants(os.getpid()))
        if now != found or now[1]:
            found, since = now, time.monotonic()
        time.sleep(0.02)
    return found
"""


def counted(code: str) -> str:
    """The output of a script that counts the descriptors and processes of its environments."""
    script = COUNTS.format(tree=str(Path(__file__).parent)) + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_many_environments_hold_no_more_than_one_and_dropped_ones_nothing():
    counted("""
        begun().close()
        before = settled()
        assert before[1] == 0
        for session in (False, True):
            env = begun(session=session)
            one = descriptors() - before[0]
            others = [begun(session=session) for _ in range(8)]
            # A session's process ends with its episode.
            assert descriptors() - before[0] <= one + 4 * 8 * session + 8
            assert len(descendants(os.getpid())) < 30 + 9 * session
            others.clear()
            gc.collect()
            assert settled_descriptors(before[0] + one + 8) <= before[0] + one + 8
            assert env.step("<code>print(2)</code>")[4]["outcome"] == "ok"
            del env
            assert (now := settled()) == before, (now, before)
        for _ in range(3):
            begun()  # and dropped during an episode
        assert (now := settled()) == before, (now, before)
        env = begun()
        begun().close()
        env.close()
        assert (now := settled()) == before, (now, before)
    """)


@pytest.mark.parametrize("session", [False, True])
def test_64_environments_at_the_usual_limit_on_open_files(session):
    counted(f"""
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
        envs = gym.make_vec(ID, 64, vectorization_mode="sync", session={session}, display={session})
        envs.reset(seed=1)
        for _ in range(2):
            *_, infos = envs.step(tuple(f"<code>print({{n}})</code>" for n in range(64)))
            assert infos["outcome"].tolist() == ["ok"] * 64, infos["outcome"]
        envs.close()
        assert descendants(os.getpid()) == []
    """)


def test_eight_processes_of_one_environment_each():
    counted("""
        made = gym.make(ID)
        vector = {"shared_memory": False}
        envs = gym.make_vec(ID, 8, vectorization_mode="async", vector_kwargs=vector)
        envs.reset(seed=1)
        *_, infos = envs.step(tuple(f"<code>print({n})</code>" for n in range(8)))
        assert infos["outcome"].tolist() == ["ok"] * 8
        envs.close()
        made.reset(seed=1)
        assert made.step("<code>print(1)</code>")[4]["outcome"] == "ok"
        made.close()
        assert settled()[1] == 0
    """)


def test_too_many_open_files_name_the_cure():
    """The advice appears for all callers, at the start of a sandbox and of a program."""
    said = counted("""
        def few(more):
            open_now = max(map(int, os.listdir("/proc/self/fd")))
            resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + more, 20_000))
        enough = resource.getrlimit(resource.RLIMIT_NOFILE)
        begun().close()  # imports all modules
        from retool_env.sandbox import nsjail
        for more in range(1, 60, 2):
            nsjail.look_at.cache_clear()
            few(more)
            try:
                env = gym.make(ID)
            except retool_env.SandboxUnavailable as error:
                print(error)
            else:
                break
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, enough)
        assert more > 5
        logging.basicConfig(stream=sys.stdout)
        session = gym.make(ID, session=True)
        for each in (env, session):
            each.reset(seed=1)
            taken = [os.dup(0) for _ in range(20)]
            few(0)
            # A spare process needs no new descriptor.
            for _ in range(10):
                *_, truncated, info = each.step("<code>print(1)</code>")
                if truncated:
                    break
            resource.setrlimit(resource.RLIMIT_NOFILE, enough)
            assert info["stop_reason"] == "infrastructure_failure", info
    """)
    lines = [line for line in said.splitlines() if line]
    assert len(lines) > 4 and sum("the sandbox failed" in line for line in lines) == 2
    for line in lines:
        for part in ("open files", "close environments", "share one sandbox", "ulimit -n"):
            assert part in line, line


# --- Gymnasium's wrappers -----------------------------------------------------------------------


def test_wrappers_of_single_environments(sandbox):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(ARITHMETIC, sandbox=sandbox, max_episode_steps=2)
        names = str(env)
        assert all(name in names for name in ("TimeLimit", "OrderEnforcing", "PassiveEnvChecker"))
        env = gym.wrappers.RecordEpisodeStatistics(env)
        env = gym.wrappers.TransformReward(env, lambda reward: 10 * reward)
        env = gym.wrappers.TransformObservation(env, str.upper, env.observation_space)
        with pytest.raises(gym.error.ResetNeeded):
            env.step("<answer>1</answer>")
        observation, _ = env.reset(seed=1)
        assert observation == observation.upper()
        assert env.step("<code>print(1)</code>")[2:4] == (False, False)
        *_, truncated, info = env.step("<code>print(2)</code>")
        assert truncated and info["stop_reason"] is None  # the wrapper truncated the episode
        assert info["episode"]["l"] == 2 and info["episode"]["r"] == 0.0
        env.reset(seed=1)
        _, reward, *_, info = env.step("<answer>no</answer>")
        assert reward == -10.0 and info["episode"]["r"] == -1.0
        env.close()


def test_a_wrong_address_of_a_sandbox_is_noticed_at_the_first_reset():
    env = gym.make("ReTool-Arithmetic-v0", sandbox="http://127.0.0.1:1")
    for _ in range(2):
        with pytest.raises(SandboxUnavailable, match=r"no program can run at http://127.0.0.1:1"):
            env.reset(seed=0)
    env.close()
    with gym.make("ReTool-Arithmetic-v0", sandbox="http://127.0.0.1:1", interpreter=False) as text:
        text.reset(seed=0)


def test_a_prompt_template_of_a_wrong_type_is_named():
    with pytest.raises(SettingsError, match=r"prompt_template must be a text .*, not 5"):
        gym.make("ReTool-Arithmetic-v0", prompt_template=5)
