"""Text spaces: any Unicode string, and one whose samples are real turns.

`gymnasium.spaces.Text` wants a finite character set and, by default, at least one character, so neither `π` nor the
empty string is inside. Observations and actions here are any text at all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Space


class AnyText(Space[str]):
    """Every Python string, the empty one included.

    Args:
        seed: Of the random samples.

    Example:
        >>> "π" in AnyText() and "" in AnyText()
        True
    """

    def __init__(self, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(dtype=str, seed=seed)

    @property
    def is_np_flattenable(self) -> bool:
        """Text has no fixed-size array form."""
        return False

    def contains(self, x: Any) -> bool:
        """Whether `x` is a string."""
        return isinstance(x, str)

    def sample(self, mask: None = None, probability: None = None) -> str:
        """Up to 64 characters, ASCII or from anywhere in Unicode; masks are not supported.

        Raises:
            ValueError: If a mask or probabilities are given.
        """
        if mask is not None or probability is not None:
            raise ValueError("a text space takes neither mask nor probability")
        length = int(self.np_random.integers(0, 65))
        top = 0x7F if self.np_random.random() < 0.5 else 0x10FFFF
        points = self.np_random.integers(0x20, top + 1, size=length)
        return "".join(chr(p) for p in points if not 0xD800 <= p <= 0xDFFF)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)


class TurnText(AnyText):
    """Every Python string, like `AnyText`, but samples are turns of the protocol.

    A random agent then runs programs and gives answers, so that a checker which draws random actions (Gymnasium's
    `check_env`) sees what an episode is made of.
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

        Raises:
            ValueError: If a mask or probabilities are given.
        """
        if mask is not None or probability is not None:
            raise ValueError("a text space takes neither mask nor probability")
        turn = self._TURNS[int(self.np_random.integers(len(self._TURNS)))]
        a, b = (int(n) for n in self.np_random.integers(1, 1000, size=2))
        return turn.format(a=a, b=b)
