"""Exchange: the episodes of a step move to the ranks that compute them, and results move back.

Each rank samples its own part of a step's episodes, of different lengths. An `Exchange` plans all
ranks' episodes together (see `retool_env.training.balance`). It sends the columns of the episodes,
such as token ids and log-probs, as flat arrays without padding: one `all_to_all` a column. Each
rank then has the rows of its passes. `Column.back` sends values that were computed for these rows
to the ranks that sampled the episodes.

Shapes: `B` episodes of this rank in `L` columns; `R` rows of a pass in `W` columns. Each rank has
equally many episodes, and equally many rows in a pass: rows without tokens fill up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from accelerate import Accelerator

from retool_env.training.balance import plan

_SENT_AS = {torch.bool: torch.uint8, torch.int64: torch.int32}
"""The types in which token ids and masks are sent."""


class Exchange:
    """The plan of a step's episodes. All processes must make it together.

    Args:
        accelerator: The accelerator of the run.
        lengths: The number of tokens of each episode of this rank, shape `(B,)`.
        budget: The largest number of tokens of a pass of one rank.
    """

    def __init__(self, accelerator: Accelerator, lengths: torch.Tensor, budget: int) -> None:
        self.accelerator = accelerator
        self.each = len(lengths)
        """The episodes of each rank."""
        self.rank = accelerator.process_index
        everywhere = accelerator.gather(lengths).tolist()
        self.plan = plan(everywhere, accelerator.num_processes, budget)
        """For each rank and pass, the numbers of the episodes: `rank * each + index`."""
        self.rows = [max(1, *map(len, packs)) for packs in zip(*self.plan, strict=True)]
        """For each pass, the number of its rows on every rank."""

    def tokens(self, real: torch.Tensor, left: bool = False) -> Column:
        """The columns with one value a token. All processes must call it.

        Args:
            real: Whether a column holds a value, shape `(B, L)`.
            left: Whether padding stands on the left.
        """
        return Column(self, real.bool(), left)

    def episodes(self) -> Column:
        """The columns with one value an episode, shape `(B, 1)`. All processes must call it."""
        device = self.accelerator.device
        return Column(self, torch.ones(self.each, 1, dtype=torch.bool, device=device), False)


class Column:
    """Columns whose rows have the same numbers of values.

    Args:
        exchange: The plan.
        real: Whether a column holds a value, shape `(B, L)`.
        left: Whether padding stands on the left.
    """

    def __init__(self, exchange: Exchange, real: torch.Tensor, left: bool) -> None:
        self._exchange, self._real = exchange, real
        sizes: list[int] = exchange.accelerator.gather(real.sum(1)).tolist()
        each, rank = exchange.each, exchange.rank
        here = range(rank * each, (rank + 1) * each)
        # The order of the sent episodes, and of the received ones before they are sorted by pass.
        self._sent = [i for packs in exchange.plan for pack in packs for i in pack if i in here]
        mine = [i for pack in exchange.plan[rank] for i in pack]
        self._received = sorted(mine, key=lambda i: i // each)  # stable
        counts = [0] * len(exchange.plan), [0] * len(exchange.plan)
        for to, packs in enumerate(exchange.plan):
            counts[0][to] = sum(sizes[i] for pack in packs for i in pack if i in here)
        for i in mine:
            counts[1][i // each] += sizes[i]
        self._counts = counts
        self._sizes = sizes
        self.real: list[torch.Tensor] = []
        """For each pass, whether a column holds a value, shape `(R, W)`."""
        for pack, rows in zip(exchange.plan[rank], exchange.rows, strict=True):
            lengths = torch.zeros(rows, 1, dtype=torch.long, device=real.device)
            lengths[: len(pack), 0] = torch.tensor([sizes[i] for i in pack], dtype=torch.long)
            # At least two columns: the first token of an episode is not predicted.
            along = torch.arange(max(2, int(lengths.max())), device=real.device)
            self.real.append(along >= len(along) - lengths if left else along < lengths)

    def out(self, values: torch.Tensor) -> list[torch.Tensor]:
        """Send a column to the ranks that compute the episodes. All processes must call it.

        Args:
            values: The column, shape `(B, L)`.

        Returns:
            For each pass of this rank, the column of its rows, shape `(R, W)`; 0 without a value.
        """
        index = torch.tensor(self._local(self._sent), dtype=torch.long, device=values.device)
        sent = values[index][self._real[index]]
        pieces = self._by_episode(self._swap(sent, *self._counts), self._received)
        filled = []
        for pack, real in zip(self._mine(), self.real, strict=True):
            rows = values.new_zeros(real.shape)
            if pack:
                rows[real] = torch.cat([pieces[i] for i in pack])
            filled.append(rows)
        return filled

    def back(self, passes: Sequence[torch.Tensor]) -> torch.Tensor:
        """Send the values of all passes to the episodes' ranks. All processes must call it.

        Args:
            passes: For each pass of this rank, the values of its rows, shape `(R, W)`.

        Returns:
            The values of this rank's episodes, shape `(B, L)`; 0 in columns without a value.
        """
        flat = torch.cat([rows[real] for rows, real in zip(passes, self.real, strict=True)])
        pieces = self._by_episode(flat, [i for pack in self._mine() for i in pack])
        sent = torch.cat([flat[:0], *(pieces[i] for i in self._received)])
        back = self._swap(sent, *self._counts[::-1])
        pieces = self._by_episode(back, self._sent)
        values = flat.new_zeros(self._real.shape)
        values[self._real] = torch.cat([flat[:0], *(pieces[i] for i in sorted(pieces))])
        return values

    def _mine(self) -> list[list[int]]:
        return self._exchange.plan[self._exchange.rank]

    def _local(self, episodes: Sequence[int]) -> list[int]:
        return [i - self._exchange.rank * self._exchange.each for i in episodes]

    def _by_episode(self, flat: torch.Tensor, order: Sequence[int]) -> dict[int, torch.Tensor]:
        return dict(zip(order, flat.split([self._sizes[i] for i in order]), strict=True))

    def _swap(self, flat: torch.Tensor, sent: list[int], received: list[int]) -> torch.Tensor:
        """Exchange flat values, given how many go to each rank and come from each."""
        if len(sent) == 1:
            return flat
        kind = _SENT_AS.get(flat.dtype, flat.dtype)
        got = torch.empty(sum(received), dtype=kind, device=flat.device)
        torch.distributed.all_to_all_single(got, flat.to(kind).contiguous(), received, sent)
        return got.to(flat.dtype)


@contextmanager
def one_pass(accelerator: Accelerator, last: bool, *models: torch.nn.Module) -> Iterator[None]:
    """A forward and backward pass of several in one optimizer step.

    Processes exchange gradients in the last pass. Shards exchange them in every pass: unexchanged
    gradients would be as large as the whole model. `accelerator.sync_gradients` is true in the last
    pass only.

    Args:
        accelerator: The accelerator of the run.
        last: Whether this is the step's last pass.
        *models: The prepared models that get gradients.
    """
    with ExitStack() as waiting:
        if not last and not accelerator.is_fsdp2:
            for model in models:
                waiting.enter_context(accelerator.no_sync(model))
        accelerator.gradient_state._set_sync_gradients(last)
        yield
