"""LSTM layers (Hochreiter and Schmidhuber, 1997), over padded sequences or step by step.

    i, f, g, o = W_x x_t + b_x + W_h h_(t-1) + b_h
    c_t = sigmoid(f) c_(t-1) + sigmoid(i) tanh(g),   h_t = sigmoid(o) tanh(c_t)

Weights have the names and shapes of `torch.nn.LSTM`. They belong to the module that is called, not
to modules within it, because ZeRO stage 3 gathers parameters around a call: once for a loop over
many steps.

Shapes: B sentences, T length, I width of the input, H of the states, L layers, N rows, P real
tokens of a batch; W ways: 2 if sequences are also read from their end, else 1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from ds_seq.names import LSTM_PARAMETERS

GATES = 4
INITIAL_SPREAD = 0.1  # of the uniform distribution that fairseq draws all parameters from


class LstmState(NamedTuple):
    """The state of all layers after some steps."""

    hidden: Tensor
    """(L, B, H), or (L, B, W H)."""
    cell: Tensor
    """As `hidden`."""

    @property
    def num_rows(self) -> int:
        """Number of sequences, B."""
        return self.hidden.size(1)

    def select(self, rows: Tensor) -> LstmState:
        """Return the state of some rows (N,) int64."""
        return LstmState(self.hidden.index_select(1, rows), self.cell.index_select(1, rows))


class LstmWeights(nn.Module):
    """The parameters of LSTM layers.

    Args:
        width: width of the input, I.
        hidden: width of the states, H.
        num_layers: number of layers, L.
        ways: 2 for layers that read a sequence in both directions, whose outputs are 2 H wide.
    """

    def __init__(self, width: int, hidden: int, num_layers: int, ways: int = 1) -> None:
        super().__init__()
        self.hidden_size, self.num_layers, self.ways = hidden, num_layers, ways
        for layer in range(num_layers):
            inputs = ways * hidden if layer else width
            for suffix in ("", "_reverse")[:ways]:
                rows = GATES * hidden
                shapes = ((rows, inputs), (rows, hidden), (rows,), (rows,))
                for name, shape in zip(LSTM_PARAMETERS, shapes, strict=True):
                    parameter = nn.Parameter(torch.empty(shape))
                    self.register_parameter(f"{name}_l{layer}{suffix}", parameter)

    def draw_parameters(self) -> None:
        """Draw a uniform distribution between -0.1 and 0.1, as fairseq does."""
        for parameter in self.parameters(recurse=False):
            nn.init.uniform_(parameter, -INITIAL_SPREAD, INITIAL_SPREAD)

    def layer(self, index: int) -> list[Tensor]:
        """Return weight of inputs, of states, and both biases; then those of the reverse way."""
        suffixes = ("", "_reverse")[: self.ways]
        return [
            self.get_parameter(f"{name}_l{index}{suffix}")
            for suffix in suffixes
            for name in LSTM_PARAMETERS
        ]


class Lstm(LstmWeights):
    """LSTM layers over whole sequences that are padded on the right.

    Padding is not read, also not by layers that begin at the end of a sequence.

    Args:
        width: see `LstmWeights`.
        hidden: see `LstmWeights`.
        num_layers: see `LstmWeights`.
        ways: see `LstmWeights`.
        dropout: dropout between layers.
        residual: whether all layers but the first add their input to their output.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        num_layers: int,
        ways: int,
        dropout: float,
        residual: bool,
    ) -> None:
        super().__init__(width, hidden, num_layers, ways)
        self.dropout, self.residual = dropout, residual

    def forward(
        self, x: Tensor, mask: Tensor | None = None, start: LstmState | None = None
    ) -> tuple[Tensor, LstmState]:
        """Return the output of the last layer, and the state of each layer at the last real token.

        Args:
            x: (B, T, I).
            mask: (B, T) bool, True at real tokens; None if all are real.
            start: state of each layer before the first token; None for zeros. It needs layers of
                one way.

        Returns:
            Outputs (B, T, W H), zero at padding, and the state.
        """
        packed = None
        if mask is not None:
            # an empty batch has a row without real tokens
            lengths = mask.sum(1).clamp(min=1).cpu()
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        data, sizes = (x, None) if packed is None else (packed.data, packed.batch_sizes)
        order = None if packed is None else packed.sorted_indices
        finals: list[LstmState] = []
        for layer in range(self.num_layers):
            if layer:
                data = F.dropout(data, self.dropout, self.training)
            y, final = self._layer(layer, data, sizes, len(x), self._start(start, layer, order))
            data = y + data if self.residual and layer else y
            finals.append(final)
        state = LstmState(*(torch.stack(part) for part in zip(*finals, strict=True)))
        if packed is None:
            return data, state
        result = PackedSequence(data, *packed[1:])
        padded, _ = pad_packed_sequence(result, batch_first=True, total_length=x.size(1))
        assert packed.unsorted_indices is not None
        return padded, state.select(packed.unsorted_indices)

    def _start(self, start: LstmState | None, layer: int, order: Tensor | None) -> LstmState | None:
        if start is None:
            return None
        own = LstmState(start.hidden[layer, None], start.cell[layer, None])
        return own if order is None else own.select(order)

    def _layer(
        self,
        layer: int,
        data: Tensor,
        sizes: Tensor | None,
        num_sequences: int,
        start: LstmState | None,
    ) -> tuple[Tensor, LstmState]:
        """Apply one layer to (B, T, I), or to packed tokens (P, I) with their sizes per step.

        Returns:
            The output, and the last state (B, W H).
        """
        weights = self.layer(layer)
        if start is None:
            zeros = data.new_zeros(self.ways, num_sequences, self.hidden_size)
            start = LstmState(zeros, zeros)
        y, hidden, cell = _lstm(data, sizes, start, _in_order(weights), self.ways > 1)
        parts = (part.transpose(0, 1).flatten(1) for part in (hidden, cell))  # (B, W H)
        return y, LstmState(*parts)


class _Link(torch.autograd.Function):
    """Returns its inputs; its backward comes before that of the link whose token it takes."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        return weight.view_as(weight), token.view_as(token)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _in_order(weights: list[Tensor]) -> list[Tensor]:
    """Return weights whose gradients are complete in the reverse order, whatever the kernel.

    PyTorch's kernel for one sequence is another one than for several. ZeRO stage 2 adds up the
    gradients of all ranks in the order in which they come, so it must be the same everywhere.
    """
    if not torch.is_grad_enabled():
        return weights
    token = weights[0].new_zeros(())
    linked = []
    for weight in weights:
        if weight.requires_grad:
            weight, token = _Link.apply(weight, token)
        linked.append(weight)
    return linked


def _lstm(
    data: Tensor, sizes: Tensor | None, start: LstmState, weights: list[Tensor], both_ways: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Apply one layer with PyTorch's kernel; returns output, last hidden state and last cell."""
    dtype = data.dtype
    if dtype == torch.float16 and data.device.type == "cpu":  # 20 times as slow as fp32
        start = LstmState(*(part.float() for part in start))
        data, weights = data.float(), [weight.float() for weight in weights]
    options = (True, 1, 0.0, False, both_ways)  # biases, layers, dropout, training
    if sizes is None:
        results = torch.lstm(data, start, weights, *options, True)
    else:
        results = torch.lstm(data, sizes, start, weights, *options)
    y, hidden, cell = (result.to(dtype) for result in results)
    return y, hidden, cell
