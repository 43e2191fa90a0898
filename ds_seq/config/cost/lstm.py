"""What models of LSTM layers keep for the backward pass, and in a search.

Counted as the code computes it. PyTorch's kernel for a CPU keeps a workspace, whose size is that of
oneDNN 3 for sentences of equal length; what cuDNN keeps is opaque, and taken to be what input
feeding keeps.

Shapes: I width of an input, H of the states, T length, S source length.
"""

from __future__ import annotations

from collections.abc import Iterator

from ds_seq.config.cost.batch import FLOAT, INDEX, Activations, BatchShape, Device, Layer
from ds_seq.config.model import RecurrentConfig, RecurrentLmConfig
from ds_seq.config.model.lstm_decoder import LSTM_GATES
from ds_seq.names import Stack

LstmConfig = RecurrentConfig | RecurrentLmConfig
_CELL = LSTM_GATES + 3  # of a token: activated gates, cell, its tangent, state
_OF_STATES, _OF_INPUTS = 9, 6  # numbers in oneDNN's workspace per H, and per max(I, H)
_ALIGNED = 16  # numbers


def lstm_activations(
    model: LstmConfig, batch: BatchShape, vocab_size: int, device: Device
) -> Activations:
    """Return what a forward pass in training keeps; see `activations`."""
    count = _Counter(model, batch, device)
    layers = tuple(count.layers())
    width = lstm_output(model)
    scores: float = vocab_size * device.width
    if model.adaptive_bands is not None:
        scores = model.adaptive_bands.expected_scores(vocab_size) * FLOAT
    tokens = batch.tokens
    return Activations(layers, count.rest(), tokens * scores, tokens * width * device.width)


def lstm_matrices(model: LstmConfig) -> Iterator[int]:
    """Yield the sizes of all matrices but the tables of the vocabulary."""
    for stack in model.stacks:
        for inputs, hidden in _layers(model, stack):
            for _ in range(_ways(model, stack)):
                yield LSTM_GATES * hidden * inputs
                yield LSTM_GATES * hidden * hidden
    hidden = model.decoder_hidden_dim
    if isinstance(model, RecurrentConfig):
        if model.attention:
            yield from (hidden * hidden, hidden * model.source_dim, hidden * model.source_dim)
        if model.source_dim != hidden:
            yield from (hidden * model.source_dim, hidden * model.source_dim)
    if model.maps_output:
        yield hidden * model.output_dim


def lstm_output(model: LstmConfig) -> int:
    """Return the width before the projection to the vocabulary."""
    return model.output_dim if model.maps_output else model.decoder_hidden_dim


def lstm_search(model: LstmConfig) -> tuple[int, int]:
    """Return the numbers that a search keeps: per source token, and per hypothesis."""
    hidden = model.decoder_hidden_dim
    states = 2 * model.decoder_layers * hidden
    if not isinstance(model, RecurrentConfig):
        return 0, states
    return (2 * hidden if model.attention else 0), states + hidden


def _ways(model: LstmConfig, stack: Stack) -> int:
    is_read_twice = isinstance(model, RecurrentConfig) and model.bidirectional
    return 2 if is_read_twice and stack == "encoder" else 1


def _layers(model: LstmConfig, stack: Stack) -> Iterator[tuple[int, int]]:
    """Yield I and H of each layer of a stack."""
    if stack == "encoder":
        assert isinstance(model, RecurrentConfig)
        inputs, hidden = model.encoder_embedding_dim, model.encoder_hidden_dim
        wide = model.source_dim
    else:
        inputs, hidden = model.decoder_embedding_dim, model.decoder_hidden_dim
        wide = hidden
        if isinstance(model, RecurrentConfig) and model.input_feeding:
            inputs += hidden
    for layer in range(model.layers_of(stack)):
        yield (wide if layer else inputs), hidden


class _Counter:
    """Counts bytes of a batch."""

    def __init__(self, model: LstmConfig, batch: BatchShape, device: Device) -> None:
        self._model, self._batch, self._device, self._w = model, batch, device, device.width
        self._pair = model if isinstance(model, RecurrentConfig) else None

    def layers(self) -> Iterator[Layer]:
        """Yield the layers of all stacks."""
        tokens = self._batch.tokens
        for stack in self._model.stacks:
            for layer, (inputs, hidden) in enumerate(_layers(self._model, stack)):
                kept = self._layer(stack, layer, inputs, hidden)
                yield Layer(stack, tokens * kept, tokens * inputs * self._w)

    def _layer(self, stack: Stack, layer: int, inputs: int, hidden: int) -> float:
        """Return what a layer keeps of a token: besides its kernel, its output and dropout."""
        ways, w = _ways(self._model, stack), self._w
        dropped = self._model.dropout_of(stack, "out") if layer else 0.0
        between = self._mask(inputs, dropped) + (inputs * w if dropped else 0.0)
        if stack == "decoder" and self._feeds:
            return between + _CELL * hidden * w
        return between + ways * (self._kernel(inputs, hidden) + hidden * w)

    def _kernel(self, inputs: int, hidden: int) -> float:
        if not self._device.keeps_workspace:
            return _CELL * hidden * self._w
        padded, wide = _aligned(hidden), _aligned(max(inputs, hidden))
        numbers = _OF_STATES * padded + _OF_INPUTS * wide
        return numbers * (1.0 + 1.0 / self._batch.length) * self._w

    @property
    def _feeds(self) -> bool:
        return self._pair is not None and self._pair.input_feeding

    def rest(self) -> float:
        """Return what is kept around the layers."""
        model, w, hidden = self._model, self._w, self._model.decoder_hidden_dim
        dropped = model.dropout_of("decoder", "out")
        # embeddings and the rows that are scored, with their numbers
        kept: float = 2 * INDEX + model.decoder_embedding_dim * w + hidden * w
        kept += self._mask(model.decoder_embedding_dim, model.dropout_of("decoder", "in"))
        if self._pair is None:
            kept += self._mask(hidden, dropped)
        else:
            kept += self._source(self._pair) + self._attention(self._pair)
        if model.maps_output:
            kept += model.output_dim * w + self._mask(model.output_dim, dropped)
        return kept * self._batch.tokens + self._copies()

    def _source(self, model: RecurrentConfig) -> float:
        """Return what embeddings of the source and the encoded source keep of a token."""
        width, encoded = model.encoder_embedding_dim, model.source_dim
        kept = INDEX + width * self._w + self._mask(width, model.dropout_of("encoder", "in"))
        kept += self._mask(encoded, model.dropout_of("encoder", "out"))
        if model.attention:  # the encoded source, keys and values
            kept += (encoded + 2 * model.decoder_hidden_dim) * self._w
        return kept

    def _attention(self, model: RecurrentConfig) -> float:
        """Return what attention and the dropout of its result keep of a target token."""
        w, hidden = self._w, model.decoder_hidden_dim
        dropped = model.dropout_of("decoder", "out")
        kept = self._mask(hidden, dropped)
        if model.attention:
            kept += hidden * w + self._batch.length * (FLOAT if w == FLOAT else FLOAT + w)
            kept += 0.0 if model.input_feeding else hidden * w  # states, sentence by sentence
        if model.input_feeding and dropped:
            kept += hidden * w
        return kept

    def _copies(self) -> float:
        """Return the copies of weights: the first layer's map of its input in two parts."""
        if not self._feeds:
            return 0.0
        hidden = self._model.decoder_hidden_dim
        inputs = self._model.decoder_embedding_dim + hidden
        return LSTM_GATES * hidden * inputs * self._w

    def _mask(self, width: float, dropout: float) -> float:
        return width * self._device.mask if dropout else 0.0


def _aligned(width: int) -> int:
    return -(-width // _ALIGNED) * _ALIGNED
