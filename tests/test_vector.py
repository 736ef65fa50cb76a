"""Vector environments: all modes of Gymnasium, and equality with its SyncVectorEnv."""

from __future__ import annotations

import os
import signal
import threading
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from helpers.notebooks import Notebooks

from retool_env import ReToolEnv, ReToolVectorEnv, SandboxUnavailable, StopReason
from retool_env.interpreter import SharedSandboxes
from retool_env.problems import Problem, ProblemList
from retool_env.sandbox import Execution, Outcome
from retool_env.spaces import TurnText

ARITHMETIC = "ReTool-Arithmetic-v0"


@pytest.fixture(autouse=True)
def no_shared_sandbox(monkeypatch):
    """Each test has its own shared sandboxes."""
    monkeypatch.setattr("retool_env.env.shared_sandboxes", SharedSandboxes())


PROBLEMS = ProblemList(
    Problem(id=f"p{i}", question=f"{i} + 1?", answer=f"{i + 1}") for i in range(50)
)
CODE, WRONG = "<code>print(1)</code>", "<answer>no</answer>"


class Echo:
    """A sandbox whose results name their programs."""

    def __init__(self) -> None:
        self.closed = 0

    def run(self, code, limits=None, **_):
        failed = "/ 0" in code or "factorint" in code
        return Execution(Outcome.RUNTIME_ERROR if failed else Outcome.OK, f"{code}\n")

    def close(self):
        self.closed += 1


class Meeting(Echo):
    """A sandbox in which no program ends before `size` programs have begun."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._barrier = threading.Barrier(size, timeout=60)

    def run(self, code, limits=None, **_):
        self._barrier.wait()
        return super().run(code)


def retool_envs(size: int, sandbox=None, **settings) -> ReToolVectorEnv:
    return ReToolVectorEnv(size, problems=PROBLEMS, sandbox=sandbox or Echo(), **settings)


def sync_envs(
    size: int, mode: AutoresetMode = AutoresetMode.NEXT_STEP, **settings
) -> SyncVectorEnv:
    def one():
        return ReToolEnv(PROBLEMS, sandbox=Echo(), **settings)

    return SyncVectorEnv([one] * size, autoreset_mode=mode)


def assert_same(mine, reference) -> None:
    """Both have equal values, types, shapes and keys, in the same order."""
    assert data_equivalence(tuple(mine), tuple(reference), exact=True)
    assert list(mine[-1]) == list(reference[-1])


# --- what Gymnasium's own gives -----------------------------------------------------------------


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("seed", range(3))
def test_it_gives_what_gymnasiums_gives(mode, seed):
    settings = {"void_turn": "continue", "max_calls": 3}
    mine, reference = (
        retool_envs(4, autoreset_mode=mode, **settings),
        sync_envs(4, mode, **settings),
    )
    assert_same(mine.reset(seed=seed), reference.reset(seed=seed))
    turns = TurnText(seed)
    lengths = []
    for _ in range(30):
        actions = tuple(turns.sample() for _ in range(4))
        step = mine.step(actions)
        assert_same(step, reference.step(actions))
        ended = step[2] | step[3]
        same_step = mode is AutoresetMode.SAME_STEP and ended.any()
        infos = step[4]["final_info"] if same_step else step[4]
        lengths += [len(transcript.spans) for transcript in infos["transcript"][ended]]
        if mode is AutoresetMode.DISABLED and ended.any():
            both = [{"reset_mask": ended.copy()} for _ in range(2)]
            assert_same(mine.reset(options=both[0]), reference.reset(options=both[1]))
            assert both[0].keys() == {"reset_mask"}  # the caller's mapping is unchanged
    assert len(set(lengths)) > 1  # some lengths differ


def test_seeds_are_counted_up_or_given_one_by_one():
    mine, reference = retool_envs(3), sync_envs(3)
    for seed in (5, [7, 7, 9], [None, 3, 4]):
        assert_same(mine.reset(seed=seed), reference.reset(seed=seed))
    first = mine.reset(seed=[7, 7, 9])[0]
    assert first[0] == first[1] != first[2]
    with pytest.raises(ValueError, match="2 seeds for 3"):
        mine.reset(seed=[1, 2])


def test_options_reach_every_member():
    mine, reference = retool_envs(2), sync_envs(2)
    options = {"problem_id": "p3"}
    assert_same(mine.reset(options=dict(options)), reference.reset(options=dict(options)))
    with pytest.raises(KeyError, match="nearest"):
        mine.reset(options={"problem_id": "none"})
    with pytest.raises(ValueError, match="unknown reset option"):
        mine.reset(options={"problem": "p3"})


def test_a_masked_reset_leaves_the_others_where_they_were():
    envs = retool_envs(3, autoreset_mode="Disabled")
    envs.reset(seed=1)
    before = envs.step((CODE, WRONG, CODE))[0]
    mask = np.array([False, True, False])
    after, infos = envs.reset(seed=5, options={"reset_mask": mask, "problem_id": "p9"})
    assert after[0] == before[0] and after[2] == before[2] and "9 + 1?" in after[1]
    assert infos["_problem_id"].tolist() == [False, True, False]
    assert envs.step((CODE, "<answer>10</answer>", CODE))[1].tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("mask", [[True], [1, 0, 1], [False, False, False], [[True] * 3]])
def test_bad_masks_are_refused(mask):
    envs = retool_envs(3)
    with pytest.raises(ValueError, match="3 booleans, at least one"):
        envs.reset(options={"reset_mask": np.array(mask)})


def test_an_ended_episode_waits_for_its_reset_where_resets_are_disabled():
    envs = retool_envs(2, autoreset_mode=AutoresetMode.DISABLED)
    envs.reset(seed=1)
    envs.step((CODE, WRONG))
    with pytest.raises(gym.error.ResetNeeded, match=r"\[1\].*reset_mask"):
        envs.step((CODE, CODE))


def test_the_final_observation_and_info_of_an_ended_episode():
    envs = retool_envs(2, autoreset_mode=AutoresetMode.SAME_STEP)
    first, _ = envs.reset(seed=1)
    observations, rewards, terminations, _, infos = envs.step((CODE, WRONG))
    assert rewards.tolist() == [0.0, -1.0] and terminations.tolist() == [False, True]
    assert infos["final_obs"][1] == first[1] + WRONG and infos["_final_obs"].tolist() == [
        False,
        True,
    ]
    assert infos["final_info"]["stop_reason"][1] is StopReason.ANSWERED
    assert infos["stop_reason"][1] is None and WRONG not in observations[1]


# --- its own promises ---------------------------------------------------------------------------


def test_programs_of_members_run_at_the_same_time():
    envs = retool_envs(4, sandbox=Meeting(4))
    envs.reset(seed=1)
    observations, *_ = envs.step(tuple(f"<code>print({i})</code>" for i in range(4)))
    assert all(f"\nprint({i})\n" in text for i, text in enumerate(observations))
    envs.close()


def test_all_members_share_one_sandbox_and_one_source(monkeypatch):
    made = []

    def make_sandbox(name):
        made.append(Echo())
        return made[-1]

    monkeypatch.setattr("retool_env.interpreter.make_sandbox", make_sandbox)
    envs = gym.make_vec(ARITHMETIC, num_envs=3, difficulty=4, max_calls=2)
    assert len(made) == 1 and len({id(env.problems) for env in envs.envs}) == 1
    assert all(env.rules.max_calls == 2 for env in envs.envs)
    assert envs.envs[2].problems[0].metadata["difficulty"] == 4
    envs.close()
    envs.close()
    assert made[0].closed == 1


@pytest.mark.parametrize("mode", AutoresetMode)
def test_each_episode_has_a_session_of_its_own(mode):
    box = Notebooks()
    envs = retool_envs(3, sandbox=box, session=True, display=True, autoreset_mode=mode)
    envs.reset(seed=1)
    for _ in range(2):
        observations, *_ = envs.step(("<code>a</code>", "<code>b</code>", "<code>c</code>"))
    assert sorted(notebook.blocks for notebook in box.used) == [["a"] * 2, ["b"] * 2, ["c"] * 2]
    assert all(notebook.display for notebook in box.used)
    assert all("block 2: " in text for text in observations) and len(box.open) == 3
    envs.step(("<code>a</code>", WRONG, "<code>c</code>"))
    assert len(box.open) == 2  # in all modes, a session ends with its episode
    if mode is AutoresetMode.DISABLED:
        envs.reset(options={"reset_mask": np.array([False, True, False])})
    if mode is AutoresetMode.NEXT_STEP:
        envs.step((CODE, CODE, CODE))
    observations, *_ = envs.step((CODE, "<code>d</code>", CODE))
    assert "block 1: d\n" in observations[1] and box.used[-1].blocks == ["d"]
    assert len(box.open) == len({notebook.number for notebook in box.used}) - 1 == 3
    envs.close()
    assert not box.open and not box.closed


def test_sessions_are_what_gymnasiums_give(sandbox):
    script = ("<code>x = 6</code>",) * 2, ("<code>x * 7</code>", WRONG), ("<code>x</code>",) * 2
    settings = {"session": True, "display": True}
    records = []
    for envs in (
        retool_envs(2, sandbox=sandbox, **settings),
        SyncVectorEnv([lambda: ReToolEnv(PROBLEMS, sandbox=sandbox, **settings)] * 2),
    ):
        records.append([envs.reset(seed=1), *map(envs.step, script)])
        envs.close()
    for mine, reference in zip(*records, strict=True):
        assert_same(mine, reference)
    assert records[0][2][0][0].endswith("\n42\n</interpreter>\n\n")


def test_a_sandbox_of_the_callers_is_left_open():
    echo = Echo()
    retool_envs(2, sandbox=echo).close()
    assert echo.closed == 0


def test_without_an_interpreter_no_sandbox_is_made(monkeypatch):
    monkeypatch.setattr("retool_env.interpreter.make_sandbox", lambda name: 1 / 0)
    envs = gym.make_vec(ARITHMETIC, num_envs=2, interpreter=False)
    envs.reset(seed=1)
    assert envs.step((WRONG, CODE))[2].tolist() == [True, True]
    envs.close()


@pytest.mark.parametrize("bad", [3, None, b"x"])
def test_a_bad_action_leaves_every_episode_where_it_was(bad):
    envs, reference = retool_envs(2), retool_envs(2)
    for each in (envs, reference):
        each.reset(seed=1)
    with pytest.raises(TypeError, match="an action must be a string"):
        envs.step((CODE, bad))
    assert_same(envs.step((CODE, WRONG)), reference.step((CODE, WRONG)))


def test_what_is_refused():
    with pytest.raises(ValueError, match="at least 1, not 0"):
        retool_envs(0)
    with pytest.raises(ValueError, match="'ansi' or None, not 'human'"):
        retool_envs(1, render_mode="human")
    with pytest.raises(ValueError, match="not a valid AutoresetMode"):
        retool_envs(1, autoreset_mode="never")
    envs = retool_envs(2)
    with pytest.raises(gym.error.ResetNeeded):
        envs.step((CODE, CODE))
    envs.reset()
    with pytest.raises(ValueError, match="1 actions for 2"):
        envs.step((CODE,))


def test_rendering():
    envs = retool_envs(2, render_mode="ansi")
    observations, _ = envs.reset(seed=1)
    assert envs.render() == observations
    assert retool_envs(2).render() is None


@pytest.mark.parametrize("mode", AutoresetMode)
def test_the_mode_is_declared_and_spaces_are_batched(mode):
    envs = retool_envs(3, autoreset_mode=mode)
    assert envs.metadata["autoreset_mode"] is mode
    assert "autoreset_mode" not in ReToolEnv.metadata
    assert retool_envs(1, autoreset_mode=mode.value).autoreset_mode is mode
    reference = sync_envs(3)
    assert envs.observation_space == reference.observation_space
    assert envs.action_space == reference.action_space
    assert envs.reset()[0] in envs.observation_space


STOPPED = "the last step was stopped before its end, by Ctrl-C or an error.*: call reset"


@pytest.mark.parametrize("mode", AutoresetMode)
def test_after_ctrl_c_the_next_step_says_what_to_do(sandbox, mode):
    """A real signal stops real programs; then all members begin anew, finished or not."""
    envs = retool_envs(3, sandbox=sandbox, limits={"wall_seconds": 3}, autoreset_mode=mode)
    envs.reset(seed=1)
    sleep = "<code>import time; time.sleep(60)</code>"
    threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        envs.step((CODE, sleep, CODE))
    for _ in range(2):
        with pytest.raises(gym.error.ResetNeeded, match=STOPPED) as needed:
            envs.step((CODE, CODE, CODE))
        assert "RunProgram" not in str(needed.value)
    with pytest.raises(gym.error.ResetNeeded, match=f"{STOPPED}.*for all environments"):
        envs.reset(options={"reset_mask": np.array([False, True, False])})
    envs.reset(seed=1)
    *_, infos = envs.step((CODE, CODE, CODE))
    assert infos["calls"].tolist() == [1, 1, 1]
    assert infos["outcome"].tolist() == [Outcome.OK] * 3
    envs.close()


def test_after_an_error_of_the_sandbox_the_next_step_says_what_to_do():
    class Once(Echo):
        broken = True

        def run(self, code, limits=None, **_):
            if "broken" in code and self.broken:
                self.broken = False
                raise SandboxUnavailable("the token was refused")
            return super().run(code)

    envs = retool_envs(2, sandbox=Once())
    envs.reset(seed=1)
    with pytest.raises(SandboxUnavailable, match="token"):
        envs.step((CODE, "<code>broken</code>"))
    with pytest.raises(gym.error.ResetNeeded, match=STOPPED):
        envs.step((CODE, CODE))
    envs.reset(seed=1)
    assert envs.step((CODE, CODE))[4]["calls"].tolist() == [1, 1]


# --- gym.make_vec -------------------------------------------------------------------------------

MODES = {
    "sync": {},
    "async": {"vector_kwargs": {"shared_memory": False}},
    "vector_entry_point": {},
    None: {},
}
SCRIPT = (
    ("<code>print(6 * 7)</code>", "<answer>1</answer>", "<code>print(x)</code>"),
    ("<answer>\\boxed{\\sqrt{8}}</answer>", CODE, "<code></code>"),
    (CODE, "hmm", "<answer>2</answer>"),
    (CODE, CODE, CODE),
)


def test_every_mode_of_make_vec_gives_the_same_episodes():
    records = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
        for mode, keywords in MODES.items():
            envs = gym.make_vec(ARITHMETIC, num_envs=3, vectorization_mode=mode, **keywords)
            assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
            steps = [envs.reset(seed=11), *map(envs.step, SCRIPT)]
            records[mode] = [(tuple(step[0]), *step[1:]) for step in steps]
            envs.close()
            envs.close()
    for mode in MODES:
        for mine, reference in zip(records[mode], records["sync"], strict=True):
            assert_same(mine, reference)
    assert type(envs) is ReToolVectorEnv  # the default mode
    assert [step[2].tolist() for step in records["sync"][1:]] == [
        [False, True, False],
        [True, False, False],
        [False, True, True],
        [False, False, False],
    ]


def test_wrappers_of_vector_environments(sandbox):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs = gym.make_vec(ARITHMETIC, num_envs=2, sandbox=sandbox)
        envs = gym.wrappers.vector.RecordEpisodeStatistics(envs)
        envs = gym.wrappers.vector.TransformReward(envs, lambda rewards: 10 * rewards)
        envs.reset(seed=1)
        *_, infos = envs.step((CODE, WRONG))
        assert infos["_episode"].tolist() == [False, True]
        assert infos["episode"]["r"].tolist() == [0.0, -1.0]
        _, rewards, *_, infos = envs.step((WRONG, CODE))
        assert rewards.tolist() == [-10.0, 0.0]
        assert infos["episode"]["l"][0] == 2 and infos["_episode"].tolist() == [True, False]
        envs.close()


def test_an_infrastructure_failure_of_one_member_leaves_the_others_alone():
    class OnceBroken(Echo):
        def run(self, code, limits=None, **_):
            if "broken" in code:
                return Execution(Outcome.INFRASTRUCTURE, "", "no jail")
            return super().run(code)

    envs = retool_envs(2, sandbox=OnceBroken())
    envs.reset(seed=1)
    _, rewards, terminations, truncations, infos = envs.step(("<code>broken</code>", CODE))
    assert rewards.tolist() == [0.0, 0.0] and terminations.tolist() == [False, False]
    assert truncations.tolist() == [True, False]
    assert infos["stop_reason"].tolist() == [StopReason.INFRASTRUCTURE, None]
