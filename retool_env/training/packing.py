"""A batch's rows without their padding: several episodes stand in one row, one after the other.

TRL pads prompts on the left and completions on the right, all of a generation batch to its longest. `pack` lays the tokens out
in as few rows of the longest episode's length as they fit into, and says where each episode begins by position ids that start
again at 0. transformers takes this, where there is no attention mask, for episodes that must not see each other. A row is no
longer than the padded ones are, since attention over it costs the square of its length; only flash attention, which computes
each episode on its own, gets all in one row.

Episodes of one prompt that stand in one row may share it: the prompt's tokens stand there once, before all of theirs, and an
attention mask shows each of them the prompt and itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

_LAYERS = {"full_attention", "sliding_attention"}
"""Kinds of layers that look at positions relative to each other alone, and at nothing but through the attention's mask."""
_PROBE = 8
"""Tokens of the prompt and of each response that a model is tried with."""


@dataclass(frozen=True)
class Packed:
    """The tokens of a batch of shape `(B, L)` that predict another, laid out in rows: `(R, W)`."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor | None
    """In an episode. Places that are left at a row's end go on counting, as if they were its last episode's. `None`: each row is
    one episode."""
    labels: torch.Tensor
    """The token that follows; -100 where its log-prob is not wanted, or there is none."""
    mask: torch.Tensor | None
    """Which places `(q, k)` see which, `(R, 1, W, W)`; `None`: what the position ids say."""
    source: torch.Tensor
    """Where scored predictions are made, in order: the index among the `R * W` places."""
    target: torch.Tensor
    """Where the tokens that they are of stand: the index among the batch's `B * L`."""
    shape: tuple[int, int]
    """`(B, L)`."""

    def unpacked(self, values: torch.Tensor) -> torch.Tensor:
        """Values of predictions, `(R, W)`, where the predicted tokens stand in the batch: `(B, L)`, 0 elsewhere."""
        batch = values.new_zeros(self.shape[0] * self.shape[1])
        return batch.index_put((self.target,), values.flatten()[self.source]).view(self.shape)


def pack(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    scored: torch.Tensor,
    one_row: bool = False,
    shared: bool = False,
    apart: bool = False,
) -> Packed:
    """Lay out a batch without its padding, nor what stands behind an episode's last scored token.

    Args:
        input_ids: Shape `(B, L)`; a row's real tokens stand side by side.
        attention_mask: 1 at real tokens.
        scored: Whether a token's log-prob is wanted; real ones alone. What stands before an episode's first is its prompt.
        one_row: All in one, however long.
        shared: Whether episodes in one row share their prompt.
        apart: Give each a row of its own, for a model that would let them see each other.
    """
    ids, real, scored = input_ids.cpu(), attention_mask.bool().cpu(), scored.bool().cpu()
    columns = ids.shape[1]
    begins = real.int().argmax(1)
    none = ~scored.any(1)
    prompts = (scored.int().argmax(1) - begins).masked_fill(none, 0).tolist()
    ends = columns - 1 - scored.flip(1).int().argmax(1)
    # An episode's last token predicts nothing.
    tails = (ends - begins).masked_fill(none, 0).tolist()
    starts = begins.tolist()
    # A prompt's last token predicts what differs, and so is each episode's own.
    heads = [max(0, prompt - 1) for prompt in prompts]
    tails = [size - head for size, head in zip(tails, heads, strict=True)]
    groups: list[Hashable] = list(range(len(ids)))
    if shared:
        groups = [
            tuple(row[start : start + prompt].tolist()) if prompt else number
            for number, (row, start, prompt) in enumerate(zip(ids, starts, prompts, strict=True))
        ]
    sizes = [head + tail for head, tail in zip(heads, tails, strict=True)]
    width = max(1, sum(sizes) if one_row and not apart else max(sizes))
    rows = [[[n]] for n in range(len(ids))] if apart else fit(heads, tails, groups, width)

    singles = len(rows) == len(ids)
    if singles:
        order, along = torch.tensor([episode for [[episode]] in rows]), torch.arange(width)
        first = order * columns + begins[order]
        ended = along >= torch.tensor(sizes)[order, None]
        taken = (first[:, None] + along).masked_fill_(ended, -1)  # the index in the batch
    else:
        taken, positions, family, branch = _lay_out(rows, heads, tails, starts, columns, width)
    follows = (taken + 1) % ids.numel()
    predicts = (taken >= 0) & scored.flatten()[follows]
    labels = ids.flatten()[follows].masked_fill(~predicts, -100)
    mask, device = None, input_ids.device
    if any(len(episodes) > 1 for families in rows for episodes in families):
        branch, family = branch.to(device), family.to(device)  # before they are squared
        seen = (branch[:, None] == 0) | (branch[:, None] == branch[:, :, None])
        seen &= family[:, None] == family[:, :, None]
        mask = seen.tril_()[:, None]
    return Packed(
        ids.flatten()[taken.clamp(min=0)].to(device),
        # Of single episodes they would say nothing, and cost a mask.
        None if singles else positions.to(device),
        labels.to(device),
        mask,
        predicts.flatten().nonzero()[:, 0].to(device),
        (taken[predicts] + 1).to(device),
        (len(ids), columns),
    )


def _lay_out(
    rows: Sequence[Sequence[Sequence[int]]],
    heads: Sequence[int],
    tails: Sequence[int],
    starts: Sequence[int],
    columns: int,
    width: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What stands at each place of rows that `fit` has filled, `(R, W)`.

    Returns:
        The index in the batch, -1 at places that are left; the position in the episode; the group among the row's; and which part
        of the group, 0 for the head that its episodes share.
    """
    taken = torch.full((len(rows), width), -1, dtype=torch.long)
    positions, family_of, branch = torch.zeros_like(taken), taken.clone(), torch.zeros_like(taken)
    for row, families in enumerate(rows):
        at = 0
        for family, episodes in enumerate(families):
            parts = [(episodes[0], 0, heads[episodes[0]])]
            parts += [(episode, heads[episode], tails[episode]) for episode in episodes]
            for number, (episode, skipped, size) in enumerate(parts):
                if not size:
                    continue
                first = episode * columns + starts[episode] + skipped
                taken[row, at : at + size] = torch.arange(first, first + size)
                positions[row, at:] = torch.arange(skipped, skipped + width - at)
                family_of[row, at:] = family
                branch[row, at:] = number
                at += size
    return taken, positions, family_of, branch


def fit(
    heads: Sequence[int], tails: Sequence[int], groups: Sequence[Hashable], width: int
) -> list[list[list[int]]]:
    """Distribute episodes among rows: the longest first, each into a row that has its group's head, or the first with room.

    Args:
        heads: Tokens that the episodes of a group have in common.
        tails: Tokens of an episode after these; both together are not above the width.
        groups: Which episodes may share their heads.
        width: Tokens of a row.

    Returns:
        The numbers of each row's episodes, by groups.
    """
    rows: list[dict[Hashable, list[int]]] = []
    room: list[int] = []
    for number in sorted(range(len(heads)), key=lambda n: -heads[n] - tails[n]):
        head, tail, group = heads[number], tails[number], groups[number]
        sizes = [tail if group in row else head + tail for row in rows]
        fitting = [i for i, size in enumerate(sizes) if size <= room[i]]
        best = min(fitting, key=lambda i: (group not in rows[i], i), default=len(rows))
        if best == len(rows):
            rows.append({})
            room.append(width)
            sizes.append(head + tail)
        rows[best].setdefault(group, []).append(number)
        room[best] -= sizes[best]
    return [list(row.values()) for row in rows]


@torch.no_grad()
def keeps_apart(model: Any, plain: Any, device: torch.device, shared: bool) -> bool:
    """Try whether an episode in a packed row has the log-probs that it has alone.

    Not all models do: some have no position ids, some pass them by when they make the mask, some have layers with a state that
    goes from token to token.

    Args:
        model: With TRL's fused head; all processes must try it at once.
        plain: The same, unwrapped: its class, its configuration and an adapter's are looked at.
        device: Of the model.
        shared: Whether episodes share their prompt.
    """
    adapter = getattr(plain, "active_peft_config", None)
    if adapter is not None:
        plain = plain.get_base_model()
        if adapter.is_prompt_learning:  # virtual tokens before each row
            return False
    config = plain.config.get_text_config()
    if "position_ids" not in inspect.signature(plain.forward).parameters:
        return False
    layers = set(getattr(config, "layer_types", None) or ())
    if not layers <= _LAYERS:
        return False
    # A mask that is given is every layer's, and other attention takes other ones.
    narrow = "sliding_attention" in layers or getattr(config, "sliding_window", None)
    if shared and (narrow or config._attn_implementation != "sdpa"):
        return False
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (2, 2 * _PROBE), generator=generator).to(device)
    ids[1, :_PROBE] = ids[0, :_PROBE]
    responses = torch.ones_like(ids)
    responses[:, :_PROBE] = 0
    batch = pack(ids, torch.ones_like(ids), responses, one_row=True, shared=shared)
    training = model.training
    model.eval()  # without dropout

    def last(ids: torch.Tensor) -> torch.Tensor:
        """Log-probs of the last tokens of a row."""
        along = torch.arange(ids.shape[1], device=device)[None]
        found = model(
            input_ids=ids, position_ids=along, shift_labels=ids.roll(-1, 1), fused_lm_head=True
        )
        return found.log_probs[0, -_PROBE - 1 : -1].float()

    try:
        alone = last(ids[1:])
        joined = last(ids.view(1, -1))
        behind = batch.unpacked(score(model, batch).log_probs)[1, -_PROBE:].float()
    finally:
        model.train(training)
    # Rounding moves the log-probs too, but far less than what stands before does where it is seen.
    return bool((behind - alone).abs().max() < 0.1 * (joined - alone).abs().max())


def score(model: Any, batch: Packed) -> Any:
    """A pass of a model with TRL's fused head over packed rows."""
    return model(
        input_ids=batch.input_ids,
        attention_mask=batch.mask,
        position_ids=batch.position_ids,
        shift_labels=batch.labels,
        fused_lm_head=True,
    )
