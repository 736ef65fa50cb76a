"""An agent in the Gymnasium environment. Run: python examples/agent.py."""

import re

import gymnasium as gym

import retool_env  # noqa: F401  (registers the environments)


def agent(observation: str) -> str:
    """Write the next turn: first a program, then the program's result as the answer."""
    if result := re.search(r"<interpreter>\n(.*)\n</interpreter>", observation):
        return f"<answer>\\boxed{{{result[1]}}}</answer>"
    expression = re.search(r"Compute (.+)\.", observation)[1]
    return f"<code>\nprint({expression})\n</code>"


if __name__ == "__main__":
    env = gym.make("ReTool-Arithmetic-v0", prompt_template="{query}\n")
    for seed in range(5):
        observation, info = env.reset(seed=seed)
        terminated = truncated = False
        while not (terminated or truncated):
            observation, reward, terminated, truncated, info = env.step(agent(observation))
        print(f"{info['transcript'].problem.question} {info['stop_reason']}, reward {reward}")
    env.close()
