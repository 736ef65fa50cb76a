"""Sampling policy: the checks that a policy can sample for a trainer."""

from __future__ import annotations

from retool_env.errors import SettingsError
from retool_env.rollout.policy import Policy, TextPolicy
from retool_env.training.step import Step
from retool_env.training.trained_weights import is_sharded


def check_policy(policy: Policy | TextPolicy, temperature: float | None = None) -> None:
    """Check that a policy's log-probs belong to the distribution that a loss assumes.

    Args:
        policy: The policy that samples.
        temperature: The temperature that the loss assumes; `None`: it is not known yet and not
            checked.

    Raises:
        SettingsError: If the policy gives text without token ids, or samples at a top-p below 1 or
            at another temperature than the loss assumes.
    """
    if isinstance(policy, TextPolicy):
        raise SettingsError(
            "a policy of text gives no token ids, so it can't be trained: use a policy that does"
        )
    if policy.top_p != 1.0:
        raise SettingsError(
            "training needs top_p = 1: with a smaller top_p the log-probs belong to a truncated "
            "distribution, and the ratio to the trained model's probabilities is wrong"
        )
    if temperature is None:
        return
    sampled_at = temperature if policy.temperature is None else policy.temperature
    if sampled_at != temperature or not temperature > 0:
        raise SettingsError(
            f"the policy samples at temperature {sampled_at}, and the loss assumes {temperature}: "
            "both must be the same and above 0"
        )


def check_step(policy: Policy, step: Step, staleness: int) -> None:
    """Check that a policy can sample a trainer's batch.

    Args:
        policy: The policy that samples.
        step: The request for the batch.
        staleness: The number of batches that are sampled ahead.

    Raises:
        SettingsError: If the policy samples at another temperature than the loss assumes, samples
            from the trained model where it can't, or shares servers that can't take new weights.
    """
    check_policy(policy, step.temperature)
    if own_model(policy, step):
        if staleness:
            raise SettingsError(
                "a policy can't sample from the model while it is trained: give the policy its "
                "own model, loaded from the same checkpoint (a copy of TRL's model keeps the "
                "original's forward), or set staleness=0"
            )
        if is_sharded(step.model):
            raise SettingsError(
                "one process can't sample from a model whose parameters are sharded: give the "
                "policy its own model, loaded from the same checkpoint, or use vLLM"
            )
    if staleness > 1 and shares_servers(policy, step) and policy.at_update == "wait":
        raise SettingsError(
            f"staleness={staleness} is too large for servers that several processes share, with "
            "adapters or at_update=wait: no turn may be under way while such servers take new "
            "weights. Set staleness=1, or weights other than adapter and at_update=cut"
        )


def own_model(policy: Policy, step: Step) -> bool:
    """Whether a policy samples from the trained model itself."""
    return policy.model is step.model


def shares_servers(policy: Policy, step: Step) -> bool:
    """Whether the policies of several processes sample from the same servers."""
    return policy.shares_servers and step.accelerator.num_processes > 1
