"""Text spaces: any Unicode string, with samples of random text or of real turns.

`gymnasium.spaces.Text` needs a finite character set and, by default, at least one character, so it
contains neither `π` nor the empty string. Observations and actions here may be any text.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Space


class AnyText(Space[str]):
    """The space of all Python strings, including the empty string.

    Args:
        seed: The seed of the random samples. `None`: a random seed.

    Example:
        >>> "π" in AnyText() and "" in AnyText()
        True
    """

    def __init__(self, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(dtype=str, seed=seed)

    @property
    def is_np_flattenable(self) -> bool:
        """False: text has no array form of a fixed size."""
        return False

    def contains(self, x: Any) -> bool:
        """Whether `x` is a string."""
        return isinstance(x, str)

    def sample(self, mask: None = None, probability: None = None) -> str:
        """A random text of up to 64 characters, from ASCII or from all of Unicode.

        Args:
            mask: Not supported.
            probability: Not supported.

        Raises:
            ValueError: If a mask or probabilities are given.
        """
        _refuse(mask, probability)
        length = int(self.np_random.integers(0, 65))
        top = 0x7F if self.np_random.random() < 0.5 else 0x10FFFF
        points = self.np_random.integers(0x20, top + 1, size=length)
        return "".join(chr(p) for p in points if not 0xD800 <= p <= 0xDFFF)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)


class TurnText(AnyText):
    """The space of all Python strings, whose samples are turns of the protocol.

    Random agents then run programs and give answers, so that a checker with random actions
    (Gymnasium's `check_env`) meets all parts of an episode.
    """

    _TURNS = (
        "Let me see.\n<code>\n```python\nprint({a} * {b})\n```\n</code>",
        "<code>\nfrom sympy import factorint\nprint(factorint({a}))\n</code>",
        "<code>\nprint({a} / 0)\n</code>",
        "<code>\nprint({a}\n</code>",
        "<code></code>",
        "I think so.\n<answer>\n\\boxed{{{a}}}\n</answer>",
        "<answer>{b}</answer>",
        "π ≈ {a}, and nothing else",
    )

    def sample(self, mask: None = None, probability: None = None) -> str:
        """A random code, answer or void turn.

        Args:
            mask: Not supported.
            probability: Not supported.

        Raises:
            ValueError: If a mask or probabilities are given.
        """
        _refuse(mask, probability)
        turn = self._TURNS[int(self.np_random.integers(len(self._TURNS)))]
        a, b = (int(n) for n in self.np_random.integers(1, 1000, size=2))
        return turn.format(a=a, b=b)


def _refuse(mask: None, probability: None) -> None:
    if mask is not None or probability is not None:
        raise ValueError("a text space supports neither mask nor probability: leave them out")
