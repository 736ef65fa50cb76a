"""A new problem set, and an environment with its problems. Run: python examples/problems.py."""

import gymnasium as gym

from retool_env.problems import SOURCES, Problem, ProblemList


def squares(size: int = 100) -> ProblemList:
    """Squares of whole numbers. The parameters become settings of the environment."""
    return ProblemList(
        Problem(id=f"squares/{n}", question=f"What is {n} squared?", answer=str(n * n))
        for n in range(size)
    )


# After this line environments and command lines can name the problem set.
SOURCES["squares"] = squares
gym.register(
    "ReTool-Squares-v0", "retool_env.env:ReToolEnv", kwargs={"problems": "squares", "size": 20}
)

if __name__ == "__main__":
    with gym.make("ReTool-Squares-v0", interpreter=False, prompt_template="{query}\n") as env:
        for seed in range(3):
            observation, _ = env.reset(seed=seed)
            n = int(observation.split()[2])
            _, reward, _, _, info = env.step(f"<answer>{n * n}</answer>")
            print(f"{info['transcript'].problem.id}: reward {reward}")
