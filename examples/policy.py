"""A new policy in the rollout engine. Run: python examples/policy.py.

This policy writes text. A policy that writes token ids inherits from `Policy` and defines `act` and
`update_weights`; such a policy can be trained.
"""

import re
from typing import override

from retool_env import Rules, make_sandbox
from retool_env.metrics import summarise
from retool_env.problems import load_problems
from retool_env.rollout import RolloutEngine, TextGeneration, TextPolicy
from retool_env.rollout.named import POLICIES, Model, make_policy


class Calculator(TextPolicy):
    """Computes with the interpreter, and answers with the result."""

    def __init__(self, patience: int = 1) -> None:
        self.patience = patience
        """The number of programs before the answer."""

    @override
    async def write(self, transcript, stop, seed):
        """Write the next turn: a program, or the answer after enough programs."""
        results = re.findall(r"<interpreter>\n(.*)\n</interpreter>", transcript.response_text)
        if len(results) == self.patience:
            return TextGeneration(f"<answer>\\boxed{{{results[-1]}}}</answer>", "tag")
        expression = re.search(r"Compute (.+)\.", transcript.text)[1]
        return TextGeneration(f"<code>\nprint({expression})\n</code>", "tag")


# After this line the policy's name works wherever a policy is named.
POLICIES["calculator"] = lambda model, **settings: Calculator(**settings)

if __name__ == "__main__":
    policy = make_policy("calculator", Model("none"), patience=2)
    problems = load_problems("arithmetic", size=8)
    with make_sandbox() as sandbox:
        engine = RolloutEngine(policy, Rules(prompt_template="{query}\n"), sandbox)
        groups = engine.run(list(problems), n=2)
    summary = summarise([transcript for group in groups for transcript in group])
    print(f"{summary.episodes} episodes, accuracy {summary.accuracy}, {summary.calls} calls")
