"""A language model that reads the source, and whose states are the input of the encoder.

Edunov, Baevski and Auli, 2019, "Pre-trained Language Model Representations for Language
Generation", arXiv:1903.09722: its output (there with its weights trained further), or, with frozen
weights, a mix of its layers as in ELMo (Peters et al., 2018, arXiv:1802.05365). With the embeddings
h_0 of the language model, the outputs h_1 ... h_L of its layers, the last one after the norm of the
stack if there is one, and learned scalars w and g:

    last:  x = P h_L
    mix:   x = P g sum_l softmax(w)_l norm(h_l)

The norm has no parameters and covers one token, so that a sentence's states do not depend on its
batch. P maps to the width of the encoder, and is left out where the widths are equal. A
decoder_only model reads the start symbol first, as in its training; the encoder does not get its
state.

Shapes: B sentences, S source length, L layers, W width of the language model, D of the encoder.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ds_seq.models.decoder_only import DecoderOnlyTransformer
from ds_seq.models.encoder_only import EncoderOnlyTransformer
from ds_seq.models.output import StackResult
from ds_seq.models.stack import real_rows
from ds_seq.names import Capture


class LanguageModelInput(nn.Module):
    """Embeds source tokens by a language model.

    Args:
        model: the language model.
        mix: what mixes its layers; None for its output.
        projection: W -> D, or None where they are equal.
        frozen: whether the language model gets no gradient, and has no dropout in training.
    """

    start: Tensor

    def __init__(
        self,
        model: DecoderOnlyTransformer | EncoderOnlyTransformer,
        mix: LayerMix | None,
        projection: nn.Module | None,
        frozen: bool,
    ) -> None:
        super().__init__()
        self.model, self.mix, self.projection, self.frozen = model, mix, projection, frozen
        if isinstance(model, DecoderOnlyTransformer):
            # saved with the weights, so that whoever loads them needs no vocabulary for it
            self.register_buffer("start", torch.zeros((), dtype=torch.int64))

    def begin_with(self, start: int) -> None:
        """Set the start symbol, which a decoder-only model reads first; others have none."""
        if isinstance(self.model, DecoderOnlyTransformer):
            self.start.fill_(start)

    def train(self, mode: bool = True) -> LanguageModelInput:
        """Switch to training; a frozen language model stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.model.eval()
        return self

    def forward(self, source: Tensor, mask: Tensor, num_tokens: int | None = None) -> Tensor:
        """Embed source tokens.

        Args:
            source: (B, S).
            mask: (B, S) bool, True at real tokens.
            num_tokens: number of real tokens, so that a GPU need not count them; None if unknown.

        Returns:
            (B, S, D).
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            layers = self._layers(source, mask, num_tokens)
        x = layers[-1] if self.mix is None else self.mix(layers)
        if self.projection is not None:
            x = self.projection(x)
        return x

    def _layers(self, source: Tensor, mask: Tensor, num_tokens: int | None) -> list[Tensor]:
        """Return the states that are used, each (B, S, W)."""
        model = self.model
        capture: Capture = "none" if self.mix is None else "hidden"
        first = 0
        result: StackResult
        if isinstance(model, DecoderOnlyTransformer):
            first = 1
            source = torch.cat([self.start.expand(len(source), 1), source], 1)
            mask = torch.cat([mask.new_ones(len(source), 1), mask], 1)
            count = None if num_tokens is None else num_tokens + len(source)
            result = model.states_of(source, mask, capture, real_rows(mask, count))
        else:
            result = model.encoded(source, mask, capture, num_tokens)
        if self.mix is None:
            return [result.hidden[:, first:]]
        layers = [model.target_embedding(source), *result.states[:-1], result.hidden]
        return [layer[:, first:] for layer in layers]


class LayerMix(nn.Module):
    """A learned average of normalized layers, times a learned scalar.

    Args:
        num_layers: number of layers, with the embeddings.
    """

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.empty(num_layers))
        self.scale = nn.Parameter(torch.empty(1))

    def draw_parameters(self) -> None:
        """Begin with the mean of all layers."""
        nn.init.zeros_(self.weights)
        nn.init.ones_(self.scale)

    def forward(self, layers: list[Tensor]) -> Tensor:
        """Mix layers (B, S, W): (B, S, W)."""
        shares = torch.softmax(self.weights.float(), 0)
        mixed = torch.zeros_like(layers[0], dtype=torch.float32)
        for share, layer in zip(shares, layers, strict=True):
            mixed = mixed + share * F.layer_norm(layer.float(), layer.shape[-1:])
        return (self.scale.float() * mixed).to(layers[0].dtype)
