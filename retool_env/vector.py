"""ReToolVectorEnv: many episodes over one sandbox.

Gymnasium's own vector environments step their members one after another, or each in its own
process. Here the programs of all members run at the same time in one sandbox; threads wait for
their results.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from retool_env.env import INTERRUPTED_STEP_ERROR, ReToolEnv
from retool_env.errors import SettingsError

Observations = tuple[str, ...]


class ReToolVectorEnv(VectorEnv[Observations, Observations, NDArray[Any]]):
    """`num_envs` independent episodes, whose programs run at the same time.

    Observations and actions are tuples of `num_envs` strings; rewards, terminations and truncations
    have shape `(num_envs,)`. `infos` follows Gymnasium's convention: each key has a boolean mask
    `_key`. By this convention, `infos["correct"]` of an unfinished episode may be False or `None`:
    read it only for finished episodes.

    Args:
        num_envs: Number of episodes.
        autoreset_mode: The treatment of a finished episode (`gymnasium.vector.AutoresetMode`);
            `metadata["autoreset_mode"]` repeats it.
        render_mode: With `"ansi"`, `render` returns a tuple of transcripts. `None`: no rendering.
        **settings: The arguments of `ReToolEnv`.

    Raises:
        ValueError: If `num_envs` is below 1, or the render mode is unknown.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        if num_envs < 1:
            raise SettingsError(f"num_envs must be at least 1, not {num_envs}")
        if render_mode not in (None, "ansi"):
            raise SettingsError(f"render_mode must be 'ansi' or None, not {render_mode!r}")
        first = ReToolEnv(render_mode=render_mode, **settings)
        rest = {**settings, "problems": first.problems, "sandbox": first.sandbox}
        for name in set(settings) - {"problems", "sandbox"} - set(first.rules.__dataclass_fields__):
            del rest[name]  # they were for the problem source, which exists by now
        self.envs = [
            first,
            *(ReToolEnv(render_mode=render_mode, **rest) for _ in range(num_envs - 1)),
        ]
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**ReToolEnv.metadata, "autoreset_mode": self.autoreset_mode}
        self.single_observation_space = first.observation_space
        self.single_action_space = first.action_space
        self.observation_space = batch_space(first.observation_space, num_envs)
        self.action_space = batch_space(first.action_space, num_envs)
        self._ended = np.zeros(num_envs, dtype=np.bool_)
        self._in_step = False
        self._observations = [""] * num_envs
        self._threads = ThreadPoolExecutor(max_workers=num_envs, thread_name_prefix="retool-vector")

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Begin all episodes, or the episodes in `options["reset_mask"]`.

        Args:
            seed: The seed of the first episode, counted up for the others; or a list with a seed
                for each episode. `None`: the random generators continue.
            options: `reset_mask`, a boolean array of shape `(num_envs,)`. All other options go to
                each environment.

        Returns:
            The observations and `infos`.

        Raises:
            ValueError: If the number of seeds or the shape of the mask is wrong.
            gymnasium.error.ResetNeeded: If the last step was interrupted, and the mask leaves out
                an episode.
        """
        options = dict(options or {})
        mask = np.asarray(options.pop("reset_mask", np.ones(self.num_envs, dtype=np.bool_)))
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
            raise SettingsError(
                f"reset_mask must be {self.num_envs} booleans, at least one of them true"
            )
        if self._in_step and not mask.all():
            raise gym.error.ResetNeeded(f"{INTERRUPTED_STEP_ERROR}, for all environments")
        if seed is None or isinstance(seed, int):
            seeds = [None if seed is None else seed + i for i in range(self.num_envs)]
        else:
            seeds = list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(
                f"{len(seeds)} seeds for {self.num_envs} environments: pass one seed for each"
            )
        infos: dict[str, Any] = {}
        for i in np.flatnonzero(mask):
            self._observations[i], info = self.envs[i].reset(seed=seeds[i], options=options)
            infos = self._add_info(infos, info, int(i))
        self._ended[mask] = False
        self._in_step = False
        return tuple(self._observations), infos

    def step(
        self, actions: Observations
    ) -> tuple[Observations, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Take one action in each environment.

        An environment that is reset in this step ignores its action.

        Args:
            actions: A tuple of `num_envs` texts.

        Returns:
            Observations, rewards, terminations, truncations and `infos`.

        Raises:
            ValueError: If the number of actions is not `num_envs`.
            TypeError: If an action is not a string.
            gymnasium.error.ResetNeeded: If the last step was interrupted or, in mode `DISABLED`, if
                a finished episode was not reset.
        """
        if self._in_step:
            raise gym.error.ResetNeeded(INTERRUPTED_STEP_ERROR)
        if len(actions) != self.num_envs:
            raise ValueError(
                f"{len(actions)} actions for {self.num_envs} environments: pass one action for each"
            )
        if self.autoreset_mode is AutoresetMode.DISABLED and self._ended.any():
            raise gym.error.ResetNeeded(
                f"episodes {np.flatnonzero(self._ended).tolist()} have ended: reset them with "
                "options['reset_mask']"
            )
        resetting = self._ended.copy()  # false everywhere but in mode NEXT_STEP
        active = [i for i in range(self.num_envs) if not resetting[i]]
        for i in active:  # checked first, so that an error leaves all episodes unchanged
            self.envs[i].check_action(actions[i])
        self._in_step = True
        needs = {i: self.envs[i].begin_step(actions[i]) for i in active}
        futures = {
            i: self._threads.submit(self.envs[i].resolve, need)
            for i, need in needs.items()
            if need is not None
        }
        rewards = np.zeros(self.num_envs, dtype=np.float64)
        terminations = np.zeros(self.num_envs, dtype=np.bool_)
        truncations = np.zeros(self.num_envs, dtype=np.bool_)
        infos: dict[str, Any] = {}
        for i, env in enumerate(self.envs):
            if resetting[i]:
                self._observations[i], info = env.reset()
            else:
                result = futures[i].result() if i in futures else None
                observation, rewards[i], terminations[i], truncations[i], info = env.end_step(
                    result
                )
                self._observations[i] = observation
                ended = terminations[i] or truncations[i]
                if ended and self.autoreset_mode is AutoresetMode.SAME_STEP:
                    infos = self._add_info(infos, {"final_obs": observation, "final_info": info}, i)
                    self._observations[i], info = env.reset()
            infos = self._add_info(infos, info, i)
        same_step = self.autoreset_mode is AutoresetMode.SAME_STEP
        self._ended = np.zeros_like(terminations) if same_step else terminations | truncations
        self._in_step = False
        return tuple(self._observations), rewards, terminations, truncations, infos

    def render(self) -> tuple[str, ...] | None:
        """A tuple of transcripts in mode `"ansi"`, otherwise `None`."""
        if self.render_mode is None:
            return None
        return tuple(env.render() or "" for env in self.envs)

    def close_extras(self, **kwargs: Any) -> None:
        """End the threads and the sessions, and close the sandbox."""
        self._threads.shutdown()
        for env in reversed(self.envs):
            env.close()
