"""LSTM layers that attend to a source, for a whole target at once or step by step.

Luong et al., 2015, "Effective Approaches to Attention-based Neural Machine Translation",
https://arxiv.org/abs/1508.04025. The state h of the last layer attends to the encoded source s:

    a = softmax(h W_a s),   y = tanh(W_c [a s; h])

The parts of W_a and W_c that multiply the source are applied to it once (`SourceMemory`), so a step
needs neither. With input feeding, y is part of the next step's input.

Shapes: B sentences, S source length, E width of the encoded source, N rows (B or B K; row n
belongs to sentence n // K), T steps, I width of embeddings, H width of the states, L layers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ds_seq.modules.linear import Linear, linear
from ds_seq.modules.lstm import INITIAL_SPREAD, Lstm, LstmState
from ds_seq.modules.packed import Packed, pack

_NEVER = -1e30  # finite, because an empty batch has a row without any real token


class UniformLinear(Linear):
    """A linear map with the initial values of LSTM layers."""

    def draw_parameters(self) -> None:
        """Draw a uniform distribution, see `ds_seq.modules.lstm`."""
        for parameter in self.parameters(recurse=False):
            nn.init.uniform_(parameter, -INITIAL_SPREAD, INITIAL_SPREAD)


class Memory(NamedTuple):
    """What the decoder reads of the source."""

    keys: Tensor
    """(B, S, H), the encoded source times W_a."""
    values: Tensor
    """(B, S, H), the encoded source times its part of W_c."""
    bias: Tensor | None
    """(B, 1, S) float32, added to scores: very negative at padding; None without padding."""

    def select(self, sentences: Tensor) -> Memory:
        """Return the memory of some sentences (B',) int64."""
        bias = None if self.bias is None else self.bias.index_select(0, sentences)
        keys, values = (each.index_select(0, sentences) for each in (self.keys, self.values))
        return Memory(keys, values, bias)


class DecoderState(NamedTuple):
    """The state after some steps."""

    layers: LstmState
    """(L, N, H) each."""
    fed: Tensor
    """(N, H), what the last step has returned; not used without input feeding."""

    @property
    def num_rows(self) -> int:
        """Number of hypotheses, N."""
        return len(self.fed)

    def select(self, rows: Tensor) -> DecoderState:
        """Return the state of some rows (N,) int64."""
        return DecoderState(self.layers.select(rows), self.fed.index_select(0, rows))


class Decoded(NamedTuple):
    """What some steps return."""

    hidden: Tensor
    """(N, T, H)."""
    state: DecoderState
    """The state after the last step."""
    maps: Tensor | None = None
    """(N, T, S) attention weights, if there is attention."""


class _Divided(NamedTuple):
    """The first layer's map of its input, divided into embedding and what is fed."""

    of_embeddings: tuple[Tensor, ...]
    """(N, 4 H) for each step: what embeddings give to the gates, with a bias."""
    of_fed: Tensor
    """(4 H, H), the weights of what is fed."""


class SourceMemory(nn.Module):
    """Maps the encoded source and its last states to what a decoder reads of them.

    Args:
        source_width: E.
        hidden: H.
        num_layers: layers of the decoder, L.
        attends: whether the decoder attends to the source.
    """

    def __init__(self, source_width: int, hidden: int, num_layers: int, attends: bool) -> None:
        super().__init__()
        self.num_layers, self.hidden_size = num_layers, hidden
        self.keys = UniformLinear(source_width, hidden, bias=False) if attends else None
        self.values = UniformLinear(source_width, hidden, bias=False) if attends else None
        fits = source_width == hidden
        self.start_hidden = None if fits else UniformLinear(source_width, hidden)
        self.start_cell = None if fits else UniformLinear(source_width, hidden)

    def forward(
        self, source: Tensor, mask: Tensor, finals: LstmState
    ) -> tuple[Memory | None, DecoderState]:
        """Return what a decoder reads and the state in which it starts.

        Args:
            source: (B, S, E).
            mask: (B, S) bool, True at real tokens.
            finals: (layers of the encoder, B, E), the last state of each layer.
        """
        memory = None
        if self.keys is not None and self.values is not None:
            bias = None
            if source.is_cuda or not bool(mask.all()):  # a check would make the host wait for a GPU
                bias = torch.zeros(mask.shape, device=mask.device)
                bias = bias.masked_fill_(~mask, _NEVER)[:, None]
            memory = Memory(self.keys(source), self.values(source), bias)
        layers = LstmState(
            self._start(finals.hidden, self.start_hidden),
            self._start(finals.cell, self.start_cell),
        )
        return memory, DecoderState(layers, torch.zeros_like(layers.hidden[0]))

    def _start(self, finals: Tensor, start: nn.Module | None) -> Tensor:
        """Return (L, B, H): the layers' last states from the top, zeros below if there are none."""
        known = finals[-self.num_layers :]
        known = known if start is None else start(known)
        return F.pad(known, (0, 0, 0, 0, self.num_layers - len(known), 0))


class DecoderLstm(Lstm):
    """LSTM layers with attention to a source.

    All steps are computed in one call per layer, or, with input feeding, in a loop.

    Args:
        width: width of embeddings, I.
        hidden: H.
        num_layers: L.
        dropout: dropout between layers and on the result.
        residual: whether all layers but the first add their input to their output.
        attends: whether there is attention.
        feeds: whether the result of a step is part of the input of the next.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        num_layers: int,
        dropout: float,
        residual: bool,
        attends: bool,
        feeds: bool,
    ) -> None:
        super().__init__(
            width + hidden if feeds else width, hidden, num_layers, 1, dropout, residual
        )
        self.feeds, self._widths = feeds, (width, hidden)
        self.mix = nn.Parameter(torch.empty(hidden, hidden)) if attends else None
        self._packed: dict[str, Packed | None] = {}

    def pack(self, int8: bool = False) -> None:
        """Use packed copies of the weights in single steps, see `ds_seq.modules.packed`."""
        if not self.feeds:  # whose layers are called as a whole
            return
        for index in range(self.num_layers):
            inputs, states, *biases = self.layer(index)
            self._packed[f"inputs{index}"] = pack(inputs, biases[0], int8)
            self._packed[f"states{index}"] = pack(states, biases[1], int8)
        if self.mix is not None:
            self._packed["mix"] = pack(self.mix, None, int8)

    def forward(  # type: ignore[override]
        self, x: Tensor, state: DecoderState, memory: Memory | None
    ) -> Decoded:
        """Take T steps.

        Args:
            x: embeddings (N, T, I).
            state: the state before the first step.
            memory: the source; None without attention.
        """
        if self.feeds:
            return self._fed(x, state, memory)
        y, layers = super().forward(x, start=state.layers)
        y, maps = self._attend(y, memory)
        y = F.dropout(y, self.dropout, self.training)
        return Decoded(y, DecoderState(layers, state.fed), maps)

    def _fed(self, x: Tensor, state: DecoderState, memory: Memory | None) -> Decoded:
        hidden, cell = list(state.layers.hidden.unbind(0)), list(state.layers.cell.unbind(0))
        fed = state.fed
        # Single steps of a search have one product for the input. In training it is divided at any
        # length: ZeRO stage 2 needs gradients in the same order on all ranks.
        known = self._divided(x) if x.size(1) > 1 or torch.is_grad_enabled() else None
        results, maps = [], []
        for step in range(x.size(1)):
            y = fed if known is not None else torch.cat([x[:, 0], fed], 1)
            for layer in range(self.num_layers):
                given = F.dropout(y, self.dropout, self.training) if layer else y
                gates = self._product("states", layer, hidden[layer])
                if known is None or layer:
                    gates = gates + self._product("inputs", layer, given)
                else:
                    gates = gates + known.of_embeddings[step] + linear(given, known.of_fed)
                hidden[layer], cell[layer] = _Cell.apply(gates, cell[layer])
                y = hidden[layer] + given if self.residual and layer else hidden[layer]
            mixed, weights = self._attend(y[:, None], memory)
            fed = F.dropout(mixed[:, 0], self.dropout, self.training)
            results.append(fed)
            if weights is not None:
                maps.append(weights)
        layers = LstmState(torch.stack(hidden), torch.stack(cell))
        return Decoded(
            torch.stack(results, 1),
            DecoderState(layers, fed),
            torch.cat(maps, 1) if maps else None,
        )

    def _divided(self, x: Tensor) -> _Divided:
        """Divide the first layer's map of its input, given all embeddings (N, T, I)."""
        inputs, _, bias, _ = self.layer(0)
        # copies, because oneDNN multiplies part of a matrix hundreds of times as slowly
        own, of_fed = (part.contiguous() for part in inputs.split(self._widths, dim=1))
        return _Divided(linear(x, own, bias).unbind(1), of_fed)

    def _product(self, name: str, layer: int, x: Tensor) -> Tensor:
        """Return the gates (N, 4 H) that a map of a layer gives for its input or its state x."""
        inputs, states, *biases = self.layer(layer)
        weight, bias = (inputs, biases[0]) if name == "inputs" else (states, biases[1])
        return linear(x, weight, bias, packed=self._packed.get(f"{name}{layer}"))

    def _attend(self, hidden: Tensor, memory: Memory | None) -> tuple[Tensor, Tensor | None]:
        """Let states (N, T, H) attend to the source.

        Returns:
            The result (N, T, H) and the weights (N, T, S), or the states without attention.
        """
        if memory is None or self.mix is None:
            return hidden, None
        queries = hidden.reshape(len(memory.keys), -1, hidden.size(-1))  # (B, K T, H)
        scores = queries @ memory.keys.transpose(1, 2)
        if memory.bias is not None:
            scores = scores + memory.bias
        weights = scores.softmax(-1, dtype=torch.float32)
        read = (weights.to(hidden.dtype) @ memory.values).view_as(hidden)
        own = linear(hidden, self.mix, packed=self._packed.get("mix"))
        return torch.tanh(read + own), weights.view(*hidden.shape[:2], -1)


class _Cell(torch.autograd.Function):
    """Gates (N, 4 H) and the last cell (N, H) -> hidden state and cell, (N, H) each.

    One node of the graph in place of ten: a loop spends much of its time on them.
    """

    @staticmethod
    def forward(ctx: Any, gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        take, keep, new, show = gates.chunk(4, 1)
        take, keep, show = take.sigmoid(), keep.sigmoid(), show.sigmoid()
        new = new.tanh()
        after = keep * cell + take * new
        shown = after.tanh()
        ctx.save_for_backward(take, keep, new, show, cell, shown)
        return show * shown, after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_hidden: Tensor, grad_cell: Tensor) -> tuple[Tensor, Tensor]:
        take, keep, new, show, cell, shown = ctx.saved_tensors
        grad = grad_cell + grad_hidden * show * (1 - shown * shown)
        gates = torch.cat(
            [
                grad * new * take * (1 - take),
                grad * cell * keep * (1 - keep),
                grad * take * (1 - new * new),
                grad_hidden * shown * show * (1 - show),
            ],
            1,
        )
        return gates, grad * keep
