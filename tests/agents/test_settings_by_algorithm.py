"""A table of settings and algorithms: each setting of rollouts and losses has an effect.

A cell is a setting of an algorithm. Its test fails if the setting has no effect, or if a token that
the model did not write gets a loss, an advantage or a value. PPO has a cell for every setting of
the algorithms without a critic; a setting without a meaning for PPO is refused.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from helpers import ROOT, references, scripted_rollouts
from helpers.ppo_batches import FOREIGN, ROWS, changes
from helpers.ppo_batches import row as random_row
from helpers.scripted_rollouts import BUDGET, GROUP, ROLES, Ran, check_own_tokens
from helpers.small_runs import make_small
from transformers import AutoModelForCausalLM

from agents import dapo, grpo, ppo
from agents.base.fields import PolicySettings
from agents.base.presets import load_settings
from agents.base.selection import uncleanness
from agents.base.settings import SettingsError, default_values, field_names
from agents.models.tiny import make_tokenizer
from retool_env.training.rows import has_void_turn, is_overlong, teaches
from retool_env.transcript import StopReason

pytestmark = pytest.mark.usefixtures("one_thread")

OTHERS = ("dapo", "dr_grpo", "gspo", "cispo", "rloo", "reinforce_pp")
"""The algorithms that are `grpo.train` with other parts; their cells are slow tests."""

every = pytest.mark.parametrize(
    "name", ["ppo", "grpo", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
OF_THE_RUN = {
    *("name", "env", "sandbox", "seed", "model", "dtype", "report_to", "lora_rank", "attention"),
    *("gradient_checkpointing", "export_dtype", "allow_high_learning_rate", "engine"),
    *("sample_batch", "steps", "prompts", "rollouts", "micro_batch", "learning_rate"),
    *("save_steps", "export_steps", "transcripts_every", "curriculum", "eval_every"),
    *("eval_problems", "eval_k", "eval_env"),
}
"""Settings of the model, of places, of sizes, of records and of evaluations.
`tests/agents/base/test_selection.py` trains both kinds of algorithms on a curriculum."""

ELSEWHERE = {
    "trl": "mini_batch, epochs, max_grad_norm and weight_decay",
    "ratio_cap": "dual_clip",
}
"""Settings that PPO lacks, and the settings of PPO with the same meaning."""


@pytest.fixture(scope="module")
def initial(tmp_path_factory):
    return make_small(tmp_path_factory.mktemp("initial"), num_hidden_layers=2)


# Rollouts


@dataclass(frozen=True)
class Cell:
    """A setting of rollouts, and the check that compares a run with a run without it."""

    given: dict[str, Any]
    check: Callable[[Ran, Ran], None]
    without: dict[str, Any] = dataclasses.field(default_factory=dict)
    roles: tuple[str, ...] = ROLES


def lags(ran: Ran) -> set[int]:
    return {t.trained_version - t.weight_version for t in ran.episodes}


def counts_all(ran: Ran) -> None:
    """The accuracy counts trained episodes, and episodes that were sampled and dropped."""
    for record, rows, others in zip(ran.records, ran.rows, ran.others, strict=True):
        episodes = [*(row.transcript for row in rows), *others]  # none has failed
        right = sum(bool(t.correct) for t in episodes)
        assert record["env/accuracy"] == pytest.approx(right / len(episodes))


def staleness(ran: Ran, plain: Ran) -> None:
    assert (lags(plain), lags(ran)) == ({0}, {0, 1})
    assert [record["rollout/weight_lag"] for record in ran.records] == [0, 1, 1]


def in_flight(ran: Ran, plain: Ran) -> None:
    assert ran.most == 2 < plain.most


def tokens_in_flight(ran: Ran, plain: Ran) -> None:
    assert ran.most == 1 < plain.most


def deadline(ran: Ran, plain: Ran) -> None:
    assert any(t.stop_reason is StopReason.CANCELLED for t in ran.episodes)
    assert any(row.mask and any(row.mask) for row in ran.rows[0])
    for row in ran.rows[0]:
        cut = row.transcript.stop_reason is StopReason.CANCELLED
        assert (row.reward is None) == cut == (not any(row.mask))
    assert 0 < ran.records[0]["env/deadline_cut"] < 1


def oversample(ran: Ran, plain: Ran) -> None:
    assert ran.records[0]["rollout/dropped"] == len(ROLES) * GROUP / 2
    assert len(ran.rows[0]) == len(plain.rows[0]) and ran.others[0] and not plain.others[0]
    counts_all(ran)


def unanimous(ran: Ran, by: str) -> int:
    groups = zip(*[iter(ran.episodes)] * GROUP, strict=True)
    return sum(not teaches(group, by) for group in groups)


def resample(ran: Ran, plain: Ran) -> None:
    assert unanimous(ran, "accuracy") == 0 < unanimous(plain, "accuracy")
    assert ran.records[0]["rollout/resampled"] >= 2 and ran.others[0]
    counts_all(ran)


def resample_by(ran: Ran, accuracy: Ran) -> None:
    """Groups of wrong answers with different rewards stay."""
    wrong = [{t.problem.id for t in each.episodes} for each in (ran, accuracy)]
    assert "wrong" in wrong[0] and "wrong" not in wrong[1]
    assert unanimous(ran, "reward") == 0 < unanimous(ran, "accuracy")


def spare(ran: Ran, plain: Ran) -> None:
    assert len(ran.rows[0]) == len(ran.others[0]) == len(plain.rows[0])
    sampled = [*ran.episodes, *ran.others[0]]
    right = [t for t in sampled if t.correct and t.problem.id == "mixed"]
    kept = [t for t in ran.episodes if t.correct and t.problem.id == "mixed"]
    assert sorted(map(uncleanness, kept)) == sorted(map(uncleanness, right))[: len(kept)]
    assert 0 < len(kept) < len(right)
    counts_all(ran)


def masked(figure: str, has: Callable[[Any], bool]) -> Callable[[Ran, Ran], None]:
    def check(ran: Ran, plain: Ran) -> None:
        chosen = [has(t) for t in ran.episodes]
        assert ran.records[0][figure] == pytest.approx(sum(chosen) / len(chosen)) and any(chosen)
        assert [any(row.mask) for row in ran.rows[0]] == [not each for each in chosen]
        assert all(any(row.mask) for row in plain.rows[0])
        # The reward of a masked episode stays: the algorithms with groups compare it.
        assert [row.reward for row in ran.rows[0]] == [row.reward for row in plain.rows[0]]

    return check


def temperature(ran: Ran, plain: Ran) -> None:
    assert (ran.temperatures, plain.temperatures) == ({0.7}, {1.0})
    found, other = (each.records[0]["offpolicy/difference"] for each in (ran, plain))
    assert found != pytest.approx(other, rel=1e-3)  # the loss assumes it as well


def overlong(ran: Ran, plain: Ran) -> None:
    for row in ran.rows[0]:
        length = len(row.transcript.completion_ids)
        bonus = references.overlong(length, BUDGET, 0.5 * BUDGET)
        assert row.reward == pytest.approx(row.transcript.reward + bonus)
    assert all(row.reward == row.transcript.reward for row in plain.rows[0])
    lost = plain.records[0]["reward"] - ran.records[0]["reward"]
    assert lost == pytest.approx(-ran.records[0]["rewards/episode_bonus/mean"]) and lost > 0


ROLLOUTS = {
    "staleness": Cell({"staleness": 1, "steps": 3}, staleness, {"steps": 3}),
    "in_flight": Cell({"in_flight": 2}, in_flight),
    "tokens_in_flight": Cell({"tokens_in_flight": BUDGET + 40}, tokens_in_flight),
    "deadline": Cell({"deadline": 2.0}, deadline, roles=("right", "mixed", "slow")),
    "oversample": Cell({"oversample": 1.5}, oversample),
    "resample": Cell({"resample": 9}, resample),
    "resample_by": Cell({"resample": 9, "resample_by": "reward"}, resample_by, {"resample": 9}),
    "spare": Cell({"spare": 2.0}, spare),
    "mask_void": Cell({"mask_void": True}, masked("env/void_episodes", has_void_turn)),
    "mask_overlong": Cell({"mask_overlong": True}, masked("env/overlong_episodes", is_overlong)),
    "temperature": Cell({"temperature": 0.7}, temperature),
    "overlong": Cell({"overlong": 0.5}, overlong, {"overlong": 0.0}),
}


@pytest.fixture(scope="module")
def ran(initial, tmp_path_factory):
    """Runs an algorithm with settings; equal runs are made once."""

    @functools.cache
    def once(name, roles, given):
        folder = tmp_path_factory.mktemp(name) / "run"
        return scripted_rollouts.run(name, initial, folder, roles, **dict(given))

    return lambda name, roles, **given: once(name, roles, tuple(given.items()))


@every
@pytest.mark.parametrize("setting", ROLLOUTS)
def test_a_setting_of_rollouts_reaches_the_batch_and_no_foreign_token(name, setting, ran):
    cell = ROLLOUTS[setting]
    if setting not in field_names(importlib.import_module(f"agents.{name}").Settings):
        assert setting == "overlong"
        name = "dapo"  # the algorithm without a critic that has it
    found = ran(name, cell.roles, **cell.given)
    waits = "slow" in cell.roles  # without a deadline the run would never end
    cell.check(found, found if waits else ran(name, cell.roles, **cell.without))
    check_own_tokens(found)


# Losses

RATIO = {"correction": "ratio"}
"""The engine's log-probs are the old ones. Otherwise the ratio is 1 in the first update."""

GEOMETRIC = {"correction": "geometric", "correction_low": 0.6, "correction_high": 1.05}
"""A correction that rejects some episodes below its bounds and some above."""

LOSSES: dict[str, list[dict[str, Any]]] = {
    "loss": [{"loss": "grpo"}, {"loss": "dr_grpo"}, {"loss": "luspo"}],
    "clip_low": [{**RATIO, "clip_low": 0.9}],
    "clip_high": [{**RATIO, "clip_high": 2.0}],
    "ratio_cap": [{**RATIO, "ratio_cap": 1.3}],
    "kl": [{"kl": 1.0}],
    "entropy": [{"entropy": 1.0}],
    "correction": [{"correction": "token"}, {"correction": "geometric"}],
    "correction_cap": [{"correction": "token", "correction_cap": 1.05}],
    "correction_low": [{**GEOMETRIC, "correction_low": 0.3}],
    "correction_high": [{**GEOMETRIC, "correction_high": 9.0}],
    "tokens": [{"tokens": 100}],
}
"""The values of each setting of losses of the algorithms without a critic."""

OF_PPO: dict[str, list[dict[str, Any]]] = {
    **LOSSES,
    "ratio_cap": [{**RATIO, "dual_clip": 1.3}],
    "gamma": [{"gamma": 0.5}],
    "lam": [{"lam": 0.5}],
    "whiten": [{"whiten": False}],
    "epochs": [{"epochs": 2}],
    "mini_batch": [{"mini_batch": 1, "micro_batch": 1}],
    "max_grad_norm": [{"max_grad_norm": 0.1}],
    "value_clip": [{"value_clip": 1e-6, "epochs": 2}],
    "value_coefficient": [{"value_coefficient": 0.5}],
    "critic_warmup": [{"critic_warmup": 1}],
}

BASES = {
    **dict.fromkeys(("clip_low", "clip_high", "ratio_cap"), RATIO),
    "correction_cap": {"correction": "token"},
    "correction_low": GEOMETRIC,
    "correction_high": GEOMETRIC,
    "value_clip": {"epochs": 2},
}
"""The settings of the run with which a setting's run is compared; by default the defaults."""

OF_THE_CRITIC = ("value_clip", "value_coefficient")
"""Settings of PPO that change the critic alone."""


def cells_of(table: dict[str, list[dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    return [(setting, given) for setting, values in table.items() for given in values]


def named(setting: str, given: dict[str, Any]) -> str:
    return "-".join([setting, *map(str, given.values())])


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    assert other.norm() > 0
    return ((one - other).norm() / other.norm()).item()


LOUD = 5.0
"""The size of the noise at foreign tokens, in nats or units of reward."""

EPISODES = [
    *ROWS[:3],
    {**ROWS[3], "logprobs": [p - 1.0 for p in ROWS[3]["logprobs"]]},
    random_row(9, None),
]
"""The last but one is far more probable now than when it was sampled; the last one has failed."""


def learned(initial, given, noise=0.0, episodes=None):
    """The changes of actor and critic by PPO, with noise at tokens that the model did not write."""

    def prepare(made: ppo.Learner) -> None:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():  # away from the reference
            for parameter in made.actor.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        if given.get("mini_batch") == 1 or "epochs" in given:  # each update moves the next one
            for optimizer in (made.actor_optimizer, made.critic_optimizer):
                optimizer.param_groups[0]["lr"] = 0.05
        made.budget = 36
        made.packing  # noqa: B018 -- which tries the model
        rows, score, seen = made.rows, made.score, []
        made.rows = lambda batch: seen.append(batch) or rows(batch)

        def loud(values: torch.Tensor) -> torch.Tensor:
            ids, real = seen[-1].ids[:, 1:], seen[-1].attention[:, 1:].bool()
            foreign = (ids >= FOREIGN) | ~real
            return values + noise * foreign * torch.rand(values.shape, generator=generator)

        made.score = lambda model, packed: [loud(values) for values in score(model, packed)]
        made.critic.register_forward_hook(lambda module, inputs, values: loud(values))

    sizes = {"mini_batch": 5, "micro_batch": 5}
    return changes(initial, episodes or EPISODES, prepare, **{**sizes, **given})


@pytest.fixture(scope="module")
def plainly(initial):
    """What PPO learns with other settings as they are; equal runs are made once."""
    return functools.cache(lambda given: learned(initial, dict(given)))


@pytest.mark.parametrize(
    ("setting", "given"),
    [pytest.param(*cell, id=named(*cell)) for cell in cells_of(OF_PPO)],
)
def test_a_setting_of_ppos_losses_has_an_effect_on_the_models_tokens_alone(
    setting, given, initial, plainly
):
    (actor, critic), figures = learned(initial, given)
    (before, critic_before), _ = plainly(tuple(BASES.get(setting, {}).items()))
    if setting == "tokens":  # the size of a pass changes rounding alone
        assert apart(actor, before) < 1e-4 and apart(critic, critic_before) < 1e-4
    elif setting in OF_THE_CRITIC:
        assert apart(critic, critic_before) > 1e-3
    else:
        assert apart(actor, before) > 1e-3
    loud, same = learned(initial, given, LOUD)
    assert torch.equal(loud[0], actor) and torch.equal(loud[1], critic)
    assert same == figures and critic.norm() > 0


def test_an_episode_that_is_masked_or_failed_is_as_if_absent_from_actor_critic_and_whitening(
    initial, plainly
):
    """Whatever its tokens and its reward are; `training_rows` masks whole episodes."""
    masked = [
        {**each, "env_mask": [0] * len(each["env_mask"]), "transcript": SimpleNamespace(reward=-99)}
        for each in (random_row(20, 1.0, size=9), random_row(21, 1.0))
    ]
    for loss in ("dapo", "grpo", "dr_grpo", "luspo"):
        settings = {"loss": loss, "mini_batch": 7, "micro_batch": 7}
        (actor, critic), figures = learned(initial, settings, episodes=[*masked, *EPISODES])
        (before, critic_before), same = plainly((("loss", loss),))
        assert apart(actor, before) < 1e-4 and apart(critic, critic_before) < 1e-4
        assert figures == pytest.approx(same, rel=1e-4, abs=1e-5)


def test_values_of_a_batch_that_was_sampled_ahead_are_of_the_newest_critic(initial, tmp_path):
    events = []

    def noted(name):
        original = getattr(ppo.Learner, name)

        def method(self, batch, *given):
            events.append((name, self.critic.head.weight.detach().clone()))
            return original(self, batch, *given)

        return mock.patch.object(ppo.Learner, name, method)

    with noted("values"), noted("update"):
        ran = scripted_rollouts.run("ppo", initial, tmp_path / "run", staleness=1, steps=3)
    assert lags(ran) == {0, 1}
    assert [name for name, _ in events] == ["values", "update"] * 3
    weights = [weight for _, weight in events]
    for step in range(3):  # the batch of step 1 was sampled before the update of step 0
        assert torch.equal(weights[2 * step], weights[2 * step + 1])
        assert step == 0 or not torch.equal(weights[2 * step], weights[2 * step - 1])


REFUSED = {("cispo", "clip_low"), ("cispo", "ratio_cap")}
"""Settings that an algorithm refuses; `tests/agents/base/test_fields.py` has their errors."""


def critic_free() -> Iterator[Any]:
    """The cells of the algorithms without a critic."""
    for name in ("grpo", *OTHERS):
        defaults = default_values(importlib.import_module(f"agents.{name}").Settings)
        for setting, given in cells_of(LOSSES):
            if (name, setting) not in REFUSED and not given.items() <= defaults.items():
                marks = [] if name == "grpo" else [pytest.mark.slow]
                yield pytest.param(
                    name, setting, given, id=f"{name}-{named(setting, given)}", marks=marks
                )


PLAIN = {"optim": "sgd", "max_grad_norm": 0.0, "save_strategy": "no"}
"""The change of the weights is then the gradient."""


def foreign_tokens(ids: torch.Tensor, tokenizer: Any) -> torch.Tensor:
    """1 on the interpreter's tokens, on ends that were appended, and on padding."""
    opens, closes = (
        tokenizer.convert_tokens_to_ids(tag) for tag in ("\n<interpreter>\n", "</interpreter>\n\n")
    )
    inside = (ids == opens).cumsum(1) - (ids == closes).cumsum(1) + (ids == closes).int()
    ends = (ids == tokenizer.eos_token_id) | (ids == tokenizer.pad_token_id)
    return (inside > 0) | ends


@contextmanager
def loud_tokens(noise: float) -> Iterator[None]:
    name, tokenizer = "_get_per_token_logps_and_entropies", make_tokenizer()
    original, generator = getattr(grpo.EngineGRPOTrainer, name), torch.Generator().manual_seed(0)

    def loud(self, model, input_ids, attention_mask, logits_to_keep, *given, **named):
        found = original(self, model, input_ids, attention_mask, logits_to_keep, *given, **named)
        foreign = foreign_tokens(input_ids[:, -logits_to_keep:], tokenizer)
        assert foreign.any()

        def louder(values: torch.Tensor | None) -> torch.Tensor | None:
            if values is None:
                return None
            return values + noise * foreign * torch.rand(values.shape, generator=generator)

        return louder(found[0]), louder(found[1]), found[2]

    with mock.patch.object(grpo.EngineGRPOTrainer, name, loud):
        yield


@pytest.fixture(scope="module")
def changed(initial, tmp_path_factory):
    """The change of the weights by an algorithm without a critic; equal runs are made once."""

    @functools.cache
    def once(name, given, noise):
        folder = tmp_path_factory.mktemp(name) / "run"
        more = {"trl": PLAIN, "learning_rate": 0.5, "allow_high_learning_rate": True}
        more |= {"overlong": 0.0} if name == "dapo" else {}
        with loud_tokens(noise):
            scripted_rollouts.run(name, initial, folder, **more, **dict(given))
        models = (AutoModelForCausalLM.from_pretrained(f) for f in (folder / "checkpoint", initial))
        after, before = (
            torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
            for model in models
        )
        return after - before

    return lambda name, noise=0.0, **given: once(name, tuple(given.items()), noise)


@pytest.mark.parametrize(("name", "setting", "given"), list(critic_free()))
def test_a_setting_of_losses_without_a_critic_has_an_effect_on_the_models_tokens_alone(
    name, setting, given, changed
):
    steps = {"steps": 2} if setting == "kl" else {}  # the first step begins at the reference
    found = changed(name, **steps, **given)
    before = changed(name, **steps, **BASES.get(setting, {}))
    if setting == "tokens":
        assert apart(found, before) < 1e-3
    else:
        assert apart(found, before) > 1e-3
    assert torch.equal(changed(name, LOUD, **steps, **given), found)


# The table


def test_every_setting_of_rollouts_and_losses_has_a_cell():
    shared = {*field_names(PolicySettings)}
    wanted = shared | {*field_names(grpo.Settings)} | {*field_names(dapo.Settings)}
    cells = ROLLOUTS.keys() | LOSSES.keys()
    assert wanted - OF_THE_RUN - cells == {"trl"}
    of_ppo = {*field_names(ppo.Settings)}
    assert wanted - of_ppo == ELSEWHERE.keys()
    own = of_ppo - wanted - {"critic_learning_rate", "weight_decay", "dual_clip"}
    assert own == OF_PPO.keys() - LOSSES.keys()
    for names in ELSEWHERE.values():
        assert {*re.findall(r"[a-z_]+", names)} - {"and"} <= of_ppo


def test_the_page_lists_every_cell():
    page = (ROOT / "docs" / "training" / "algorithms" / "index.md").read_text()
    table = page.partition("## Settings by algorithm")[2].partition("## Symbols")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    listed = re.findall(r"`([a-z_]+)`", " ".join(rows))
    assert sorted(listed) == sorted(ROLLOUTS.keys() | LOSSES.keys() | {"curriculum", "trl"})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        *(({name: 1}, f"unknown setting '{name}'") for name in ELSEWHERE),
        *(({"loss": loss}, f"loss={loss}: choose from dapo, grpo, dr_grpo, luspo")
          for loss in ("bnpo", "cispo", "sapo", "vespo")),
        ({"resample": 1}, "resample=1 compares the rollouts of a problem, and rollouts=1"),
        ({"spare": 2.0}, "spare=2.0 compares the rollouts of a problem, and rollouts=1"),
        ({"overlong": 1.5}, "overlong must be a share from 0 to 1"),
    ],
)  # fmt: skip
def test_a_setting_without_a_meaning_for_ppo_is_refused(given, message):
    with pytest.raises(SettingsError, match=message):
        pairs = [f"{key}={value}" for key, value in given.items()]
        ppo.check(load_settings(ppo.Settings, "ppo", "tiny", pairs), 1)
