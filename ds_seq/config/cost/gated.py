"""What models of gated convolutions keep for the backward pass, and in a search.

Shapes: C channels of a layer, D width of embeddings, S source length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ds_seq.config.cost.batch import FLOAT, INDEX, Activations, BatchShape, Device, Layer
from ds_seq.config.model import ConvolutionalConfig, ConvolutionalLmConfig
from ds_seq.config.model.gated import LayerSize, stack_maps
from ds_seq.names import Stack

GatedConfig = ConvolutionalConfig | ConvolutionalLmConfig


def gated_activations(
    model: GatedConfig, batch: BatchShape, vocab_size: int, device: Device
) -> Activations:
    """Return what a forward pass in training keeps; see `activations`."""
    count = _Counter(model, batch, device)
    layers = tuple(count.layers())
    scores: float = vocab_size * device.width
    if model.adaptive_bands is not None:
        scores = model.adaptive_bands.expected_scores(vocab_size) * FLOAT
    elif not model.shares_output and model.weight_norm:
        count.folded += vocab_size * count.last
    tokens = batch.tokens
    rest = tokens * count.rest() + count.folded * device.width
    return Activations(layers, rest, tokens * scores, tokens * count.last * device.width)


def gated_matrices(model: GatedConfig) -> Iterator[int]:
    """Yield the sizes of all matrices but the tables of the vocabulary."""
    yield from (inputs * outputs for inputs, outputs in model.layer_maps())
    if isinstance(model, ConvolutionalConfig):
        yield from (model.max_positions * model.embedding_dim for _ in model.stacks)


def gated_output(model: GatedConfig) -> int:
    """Return the width before the projection to the vocabulary."""
    if isinstance(model, ConvolutionalConfig):
        return model.output_dim
    return model.embedding_dim if model.adaptive is None else model.convolutions[-1].channels


def gated_search(model: GatedConfig) -> tuple[int, int]:
    """Return the numbers that a search keeps: per source token, and per hypothesis."""
    layers = _layers(model, "decoder")
    widths = [layers[0].channels, *[each.channels for each in layers]]
    under = sum(each.size * width for each, width in zip(layers, widths, strict=False))
    return (2 * model.embedding_dim if isinstance(model, ConvolutionalConfig) else 0), under


def _layers(model: GatedConfig, stack: Stack) -> Sequence[LayerSize]:
    if isinstance(model, ConvolutionalConfig):
        return model.convolutions_of(stack)
    return model.convolutions


class _Counter:
    """Counts bytes of a batch."""

    def __init__(self, model: GatedConfig, batch: BatchShape, device: Device) -> None:
        self._model, self._batch, self._device, self._w = model, batch, device, device.width
        self._pair = model if isinstance(model, ConvolutionalConfig) else None
        maps = model.layer_maps() if model.weight_norm else ()
        self.folded = sum(inputs * outputs for inputs, outputs in maps)
        """Numbers of weights that are computed from lengths and directions, for a whole pass."""
        self.last = gated_output(model)

    def layers(self) -> Iterator[Layer]:
        """Yield the layers of all stacks."""
        for stack in self._model.stacks:
            sizes = _layers(self._model, stack)
            before = sizes[0].channels
            for layer, maps in zip(sizes, stack_maps(sizes), strict=True):
                kept = self._mask(before) + (maps.convolution[0] + 2 * layer.channels) * self._w
                if maps.residual is not None:
                    kept += maps.residual[0] * self._w
                if self._pair is not None:
                    kept += self._of_pair(self._pair, stack, layer.channels)
                tokens = self._batch.tokens
                yield Layer(stack, tokens * kept, tokens * before * self._w)
                before = layer.channels

    def _of_pair(self, model: ConvolutionalConfig, stack: Stack, channels: int) -> float:
        """Return what a layer of an encoder-decoder keeps in addition."""
        if stack == "encoder":
            return 1.0  # the mask of padding
        attended = 2 * model.embedding_dim * self._w  # queries, and what they take
        length = self._batch.length * (FLOAT if self._w == FLOAT else FLOAT + self._w)
        return channels * self._w + attended + length

    def rest(self) -> float:
        """Return what is kept of a token around the layers."""
        model, w, width = self._model, self._w, self._model.embedding_dim
        kept = 0.0
        for stack in model.stacks:  # numbers of tokens, embeddings
            kept += INDEX + width * w + self._mask(width)
            if model.adaptive_bands is None:  # the input of the map behind the last layer
                kept += _layers(model, stack)[-1].channels * w
        if self._pair is not None:
            kept += 2 * width * w  # the encoded source, and with its embeddings
        dropped = 0.0 if model.adaptive_bands is not None else self._mask(self.last)
        return kept + INDEX + self.last * w + dropped  # the rows that are scored

    def _mask(self, width: float) -> float:
        return width * self._device.mask if self._model.dropout else 0.0
