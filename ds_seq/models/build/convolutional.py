"""Build the encoder-decoder of gated convolutions from its config section."""

from __future__ import annotations

import math

import torch
from torch import nn

from ds_seq.config.model import ConvolutionalConfig
from ds_seq.models.convolutional import (
    ConvolutionalModel,
    GatedConvolution,
    GatedLayer,
    GatedStack,
    SourceAttention,
)
from ds_seq.models.init import initialize
from ds_seq.modules.embedding import TokenEmbedding
from ds_seq.modules.linear import Linear
from ds_seq.modules.positions import LearnedPositions
from ds_seq.modules.weight_norm import NormedLinear
from ds_seq.names import Stack

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


def _stack(cfg: ConvolutionalConfig, stack: Stack) -> GatedStack:
    convolutions, width = cfg.convolutions_of(stack), cfg.embedding_dim
    before = convolutions[0][0]
    first, layers = _map(cfg, width, before, cfg.dropout), []
    for channels, size in convolutions:
        # units keep the variance of their input: gates halve the values, dropout spreads them
        map = _map(cfg, size * before, 2 * channels, cfg.dropout, 4.0)
        residual = None if channels == before else _map(cfg, before, channels)
        attention = None
        if stack == "decoder":
            attention = SourceAttention(_map(cfg, channels, width), _map(cfg, width, channels))
        layers.append(GatedLayer(GatedConvolution(map, size), residual, attention))
        before = channels
    last = _map(cfg, before, width if stack == "encoder" else cfg.output_dim)
    positions = _Positions(cfg.max_positions, width)
    return GatedStack(positions, first, layers, last, stack == "decoder", cfg.dropout)


def _map(
    cfg: ConvolutionalConfig, inputs: int, outputs: int, dropped: float = 0.0, variance: float = 1.0
) -> Linear:
    """Make a linear map whose outputs have this variance if inputs have 1 before dropout."""
    make = NormedLinear if cfg.weight_norm else Linear
    return make(inputs, outputs, deviation=math.sqrt(variance * (1.0 - dropped) / inputs))
