"""Build models of gated convolutions from their config sections."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from ds_seq.config.model import ConvolutionalConfig, ConvolutionalLmConfig
from ds_seq.config.model.gated import GatedFields, LayerSize, stack_maps
from ds_seq.models.convolutional import (
    ConvolutionalModel,
    GatedConvolution,
    GatedLayer,
    GatedStack,
    SourceAttention,
)
from ds_seq.models.convolutional_lm import ConvolutionalLanguageModel
from ds_seq.models.init import initialize
from ds_seq.modules.embedding import TokenEmbedding
from ds_seq.modules.linear import Linear
from ds_seq.modules.positions import LearnedPositions
from ds_seq.modules.weight_norm import NormedLinear
from ds_seq.names import Stack

if TYPE_CHECKING:
    from ds_seq.modules.adaptive import AdaptiveSoftmax

_SPREAD = 0.1  # deviation of embeddings and positions, of Gehring et al. (2017)


class _Table(TokenEmbedding):
    """An embedding without a scale, with the initial values of convolutional models."""

    def draw_parameters(self) -> None:
        """Draw a normal distribution; padding row and bias are zero."""
        nn.init.normal_(self.weight, std=_SPREAD)
        with torch.no_grad():
            self.weight[self.pad_id].zero_()
            if self.bias is not None:
                self.bias.zero_()


class _Positions(LearnedPositions):
    """Learned positions with the initial values of convolutional models."""

    def draw_parameters(self) -> None:
        """Draw a normal distribution."""
        nn.init.normal_(self.weight, std=_SPREAD)


def build_convolutional(
    cfg: ConvolutionalConfig,
    vocab_size: int,
    expert_parallel: int,
    expert_parallel_rank: int,
    seed: int,
    pad_id: int = 1,
    source_vocab_size: int | None = None,
) -> ConvolutionalModel:
    """Build and initialize a convolutional model; for the arguments, see `build_seq2seq`."""
    width, source_size = cfg.embedding_dim, source_vocab_size or vocab_size
    assert not cfg.shares_inputs or source_size == vocab_size, "one table has one size"
    with torch.random.fork_rng(devices=[]):  # constructors draw, too
        source = None if cfg.shares_inputs else _Table(source_size, width, pad_id, scaled=False)
        target = _Table(vocab_size, width, pad_id, scaled=False, biased=cfg.shares_output)
        output = None if cfg.shares_output else _map(cfg, cfg.output_dim, vocab_size, cfg.dropout)
        stacks = _stack(cfg, "encoder"), _stack(cfg, "decoder")
        model = ConvolutionalModel(*stacks, target, source, output, cfg.max_positions)
    initialize(model, seed)
    return model


def build_convolutional_lm(
    cfg: ConvolutionalLmConfig,
    vocab_size: int,
    expert_parallel: int,
    expert_parallel_rank: int,
    seed: int,
    pad_id: int = 1,
) -> ConvolutionalLanguageModel:
    """Build and initialize a language model; for the arguments, see `build_seq2seq`."""
    width, layers = cfg.embedding_dim, cfg.convolutions
    channels = layers[-1].channels
    output: nn.Linear | AdaptiveSoftmax | None = None
    with torch.random.fork_rng(devices=[]):
        table = _Table(vocab_size, width, pad_id, scaled=False, biased=cfg.shares_output)
        last: nn.Module | None = _map(cfg, channels, width)
        if cfg.adaptive is not None:
            from ds_seq.models.build.adaptive import make_adaptive_softmax  # only where it is used

            last, output = None, make_adaptive_softmax(cfg.adaptive, channels, vocab_size)
        elif not cfg.shares_output:
            output = _map(cfg, width, vocab_size, cfg.dropout)
        first = _map(cfg, width, layers[0].channels, cfg.dropout)
        stack = GatedStack(None, first, list(_layers(cfg, layers, None)), last, True, cfg.dropout)
        model = ConvolutionalLanguageModel(stack, table, output, cfg.max_positions)
    initialize(model, seed)
    return model


def _stack(cfg: ConvolutionalConfig, stack: Stack) -> GatedStack:
    convolutions, width = cfg.convolutions_of(stack), cfg.embedding_dim
    is_decoder = stack == "decoder"
    first = _map(cfg, width, convolutions[0].channels, cfg.dropout)
    layers = list(_layers(cfg, convolutions, width if is_decoder else None))
    last = _map(cfg, convolutions[-1].channels, cfg.output_dim if is_decoder else width)
    positions = _Positions(cfg.max_positions, width)
    return GatedStack(positions, first, layers, last, is_decoder, cfg.dropout)


def _layers(
    cfg: GatedFields, sizes: Sequence[LayerSize], attended: int | None
) -> Iterator[GatedLayer]:
    """Make layers; `attended` is the width of the source they attend to, None for no source."""
    for (channels, size, back), maps in zip(sizes, stack_maps(sizes), strict=True):
        # units keep the variance of their input: gates halve the values, dropout spreads them
        convolution = GatedConvolution(_map(cfg, *maps.convolution, cfg.dropout, 4.0), size)
        residual = None if maps.residual is None else _map(cfg, *maps.residual)
        attention = None
        if attended is not None:
            ways = _map(cfg, channels, attended), _map(cfg, attended, channels)
            attention = SourceAttention(*ways)
        yield GatedLayer(convolution, residual, attention, back)


def _map(
    cfg: GatedFields, inputs: int, outputs: int, dropped: float = 0.0, variance: float = 1.0
) -> Linear:
    """Make a linear map whose outputs have this variance if inputs have 1 before dropout."""
    make = NormedLinear if cfg.weight_norm else Linear
    return make(inputs, outputs, deviation=math.sqrt(variance * (1.0 - dropped) / inputs))
