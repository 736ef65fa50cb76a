"""A batch's rows without their padding: several episodes stand in one row, one after the other.

TRL pads prompts on the left and completions on the right, to the longest of a generation batch.
`pack` lays the tokens out in the fewest rows of the longest episode's length that hold them.
Position ids that start again at 0 tell where an episode begins: without an attention mask,
transformers concludes from them that episodes must not see each other. A row is no longer than a
padded row, since attention costs the square of its length. Only flash attention, which computes
each episode separately, gets all episodes in one row.

Episodes of one prompt that stand in one row may share the prompt: its tokens stand in the row once,
before the episodes' own tokens, and an attention mask shows each episode the prompt and itself.

Shapes: `B` episodes of `L` columns in the padded batch; `R` rows of `W` places in the packed batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from retool_env.training.balance import plan as plan

_LAYERS = {"full_attention", "sliding_attention"}
"""Kinds of layers that use only relative positions and read other tokens only through the mask."""
_PROBE = 8
"""Number of tokens of the prompt, and of each response, in the trial of a model."""


@dataclass(frozen=True)
class Packed:
    """The input tokens of a padded batch, laid out in rows without its padding."""

    input_ids: torch.Tensor
    """Token ids, shape `(R, W)`."""
    position_ids: torch.Tensor | None
    """Positions within an episode, shape `(R, W)`. Unused places at a row's end continue the count
    of the row's last episode. `None`: each row is one episode."""
    labels: torch.Tensor
    """The id of the next token, shape `(R, W)`; -100 where its log-prob is not wanted or no token
    follows."""
    mask: torch.Tensor | None
    """Whether place `q` sees place `k`, shape `(R, 1, W, W)`; `None`: the position ids decide."""
    source: torch.Tensor
    """The `S` places that predict a scored token: indices into `R * W`, shape `(S,)`."""
    target: torch.Tensor
    """The places of the predicted tokens in the batch: indices into `B * L`, shape `(S,)`."""
    shape: tuple[int, int]
    """The shape `(B, L)` of the padded batch."""

    def unpacked(self, values: torch.Tensor) -> torch.Tensor:
        """Move the values of predictions to the predicted tokens in the padded batch.

        Args:
            values: Values of predictions, shape `(R, W)`.

        Returns:
            The values, shape `(B, L)`; 0 at tokens that are not scored.
        """
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
    """Lay out a batch without its padding and without the tokens behind the last scored token.

    Args:
        input_ids: Token ids, shape `(B, L)`. The real tokens of a row stand side by side.
        attention_mask: 1 at real tokens, 0 at padding, shape `(B, L)`.
        scored: Whether a real token's log-prob is wanted, shape `(B, L)`. The tokens before an
            episode's first scored token are its prompt.
        one_row: Whether all episodes are laid out in one row, however long it is.
        shared: Whether episodes in one row share their prompt.
        apart: Whether each episode gets a row of its own, for a model that would let episodes in
            one row see each other.
    """
    ids, real, scored = input_ids.cpu(), attention_mask.bool().cpu(), scored.bool().cpu()
    columns = ids.shape[1]
    begins = real.int().argmax(1)
    none = ~scored.any(1)
    prompts = (scored.int().argmax(1) - begins).masked_fill(none, 0).tolist()
    ends = columns - 1 - scored.flip(1).int().argmax(1)
    # The last token of an episode predicts nothing, so it is left out.
    tails = (ends - begins).masked_fill(none, 0).tolist()
    starts = begins.tolist()
    # The last token of a prompt predicts the first token of a response, so it can't be shared.
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
        # In rows of single episodes position ids tell nothing new, and would cost a mask.
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
    """The contents of the places in rows that `fit` has filled.

    Returns:
        Four tensors of shape `(R, W)`: the token's index in the batch, -1 at unused places; its
        position in the episode; the number of its group in the row; the number of its part of the
        group, which is 0 for the head that the group's episodes share.
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
    """Distribute episodes among rows, the longest episode first.

    An episode goes into a row that holds the head of its group, else into the first row with room.

    Args:
        heads: For each episode, the number of first tokens that it has in common with its group.
        tails: For each episode, the number of its other tokens. Head and tail together are at most
            `width`.
        groups: For each episode, its group. Episodes of equal groups may share their heads.
        width: Tokens of a row.

    Returns:
        For each row and each of its groups, the indices of the episodes.
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
    """Try whether an episode in a packed row has the same log-probs as alone in a row.

    This does not hold for all models: some have no position ids, some ignore them when they make
    the mask, and some have layers with a state that passes from token to token.

    Args:
        model: The model with TRL's fused head. All processes must try it at the same time.
        plain: The same model without wrappers. The function reads its class, its configuration and
            the adapter's configuration.
        device: The model's device.
        shared: Whether the two episodes of the trial share their prompt.
    """
    adapter = getattr(plain, "active_peft_config", None)
    if adapter is not None:
        plain = plain.get_base_model()
        if adapter.is_prompt_learning:  # it puts virtual tokens before each row
            return False
    config = plain.config.get_text_config()
    if "position_ids" not in inspect.signature(plain.forward).parameters:
        return False
    layers = set(getattr(config, "layer_types", None) or ())
    if not layers <= _LAYERS:
        return False
    # The mask for shared prompts holds for every layer, and only sdpa takes its form.
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
        """Log-probs, shape `(_PROBE,)`, of the last tokens of a row of ids, shape `(1, T)`."""
        along = torch.arange(ids.shape[1], device=device)[None]
        labels = ids.roll(-1, 1)
        output = model(input_ids=ids, position_ids=along, shift_labels=labels, fused_lm_head=True)
        return output.log_probs[0, -_PROBE - 1 : -1].float()

    try:
        alone = last(ids[1:])
        joined = last(ids.view(1, -1))
        behind = batch.unpacked(score(model, batch).log_probs)[1, -_PROBE:].float()
    finally:
        model.train(training)
    # Rounding also moves the log-probs, but far less than the other episode does where it is seen.
    return bool((behind - alone).abs().max() < 0.1 * (joined - alone).abs().max())


def score(model: Any, batch: Packed) -> Any:
    """Run a forward pass of a model with TRL's fused head over packed rows.

    Args:
        model: The model.
        batch: The packed rows.

    Returns:
        The model's output, with `log_probs` and `entropy` of shape `(R, W)`.
    """
    return model(
        input_ids=batch.input_ids,
        attention_mask=batch.mask,
        position_ids=batch.position_ids,
        shift_labels=batch.labels,
        fused_lm_head=True,
    )
