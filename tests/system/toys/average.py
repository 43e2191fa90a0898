"""A mixer: exponential averages over the tokens of a sentence."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ds_seq.modules.body import BodyOutput, Context
from ds_seq.modules.kv_cache import BeamPaths, KeptSentences
from ds_seq.modules.linear import Linear


class AveragePast:
    """The averages of each hypothesis so far, (N, D)."""

    def __init__(self, state: Tensor, beam: int) -> None:
        self.state = state
        self.beam = beam

    def reorder(self, rows: Tensor) -> None:
        """See `Past`."""
        self.state = self.state.index_select(0, rows)

    def keep_sentences(self, kept: KeptSentences) -> None:
        """See `Past`."""
        self.state = kept.apply(self.state.unflatten(0, (-1, self.beam))).flatten(0, 1)


class ExponentialAverage(nn.Module):
    """`output(s_t)` with `s_t = decay * s_(t-1) + (1 - decay) * value(x_t)`.

    An encoder adds the same from right to left.

    Args:
        d_model: D.
        causal: whether a token sees the past only.
    """

    def __init__(self, d_model: int, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.value = Linear(d_model, d_model)
        self.output = Linear(d_model, d_model)

    def forward(self, x: Tensor, context: Context) -> BodyOutput:
        """See `Body`."""
        value = self.value(x)
        if context.token_mask is not None:
            value = value * context.token_mask.unsqueeze(-1)
        averages = self._from_the_left(value)
        if not self.causal:
            averages = averages + self._from_the_left(value.flip(1)).flip(1)
        return BodyOutput(self.output(averages))

    def start_past(self, context: Context, paths: BeamPaths) -> AveragePast:
        """See `Body`."""
        width, like = self.value.out_features, self.value.weight
        return AveragePast(like.new_zeros(paths.num_rows, width), paths.beam)

    def step(self, x: Tensor, past: AveragePast, context: Context) -> Tensor:
        """See `Body`."""
        past.state = self._next(past.state, self.value(x).flatten(0, 1))
        return self.output(past.state.view_as(x))

    def _from_the_left(self, value: Tensor) -> Tensor:
        state = torch.zeros_like(value[:, 0])
        states = []
        for token in value.unbind(1):
            state = self._next(state, token)
            states.append(state)
        return torch.stack(states, 1)

    def _next(self, state: Tensor, token: Tensor) -> Tensor:
        decay = torch.linspace(0.5, 0.95, token.size(-1), device=token.device).to(token.dtype)
        return decay * state + (1.0 - decay) * token
