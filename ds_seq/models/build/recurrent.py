"""Build models of LSTM layers from their config sections."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from ds_seq.config.model import RecurrentConfig, RecurrentLmConfig
from ds_seq.config.model.lstm_decoder import LstmDecoderFields
from ds_seq.models.init import initialize
from ds_seq.models.recurrent import RecurrentDecoder, RecurrentModel
from ds_seq.models.recurrent_lm import RecurrentLanguageModel
from ds_seq.modules.embedding import TokenEmbedding
from ds_seq.modules.lstm import INITIAL_SPREAD, Lstm
from ds_seq.modules.lstm_decoder import DecoderLstm, SourceMemory, UniformLinear

if TYPE_CHECKING:
    from ds_seq.modules.adaptive import AdaptiveSoftmax


class _Table(TokenEmbedding):
    """An embedding without a scale, with the initial values of LSTM layers."""

    def draw_parameters(self) -> None:
        """Draw a uniform distribution; the padding row is zero."""
        nn.init.uniform_(self.weight, -INITIAL_SPREAD, INITIAL_SPREAD)
        with torch.no_grad():
            self.weight[self.pad_id].zero_()
            if self.bias is not None:
                self.bias.zero_()


def build_recurrent(
    cfg: RecurrentConfig,
    vocab_size: int,
    expert_parallel: int,
    expert_parallel_rank: int,
    seed: int,
    pad_id: int = 1,
    source_vocab_size: int | None = None,
) -> RecurrentModel:
    """Build and initialize a recurrent model; for the arguments, see `build_seq2seq`."""
    with torch.random.fork_rng(devices=[]):  # constructors draw, too
        target, source, output = _tables(cfg, vocab_size, source_vocab_size or vocab_size, pad_id)
        model = RecurrentModel(
            encoder=Lstm(
                cfg.encoder_embedding_dim,
                cfg.encoder_hidden_dim,
                cfg.encoder_layers,
                2 if cfg.bidirectional else 1,
                cfg.dropout_of("encoder", "out"),
                cfg.residual,
            ),
            decoder=_decoder(cfg),
            target_embedding=target,
            source_embedding=source,
            output=output,
            max_positions=cfg.max_positions,
            dropout=(
                cfg.dropout_of("encoder", "in"),
                cfg.dropout_of("encoder", "out"),
                cfg.dropout_of("decoder", "in"),
            ),
        )
    initialize(model, seed)
    return model


def build_recurrent_lm(
    cfg: RecurrentLmConfig,
    vocab_size: int,
    expert_parallel: int,
    expert_parallel_rank: int,
    seed: int,
    pad_id: int = 1,
) -> RecurrentLanguageModel:
    """Build and initialize a language model; for the arguments, see `build_seq2seq`."""
    dropout = cfg.dropout_of("decoder", "out")
    with torch.random.fork_rng(devices=[]):
        table, output = _lm_tables(cfg, vocab_size, pad_id)
        model = RecurrentLanguageModel(
            decoder=Lstm(
                cfg.decoder_embedding_dim,
                cfg.decoder_hidden_dim,
                cfg.decoder_layers,
                1,
                dropout,
                cfg.residual,
            ),
            target_embedding=table,
            projection=_projection(cfg),
            output=output,
            max_positions=cfg.max_positions,
            dropout=(cfg.dropout_of("decoder", "in"), dropout),
        )
    initialize(model, seed)
    return model


def _decoder(cfg: RecurrentConfig) -> RecurrentDecoder:
    hidden, dropout = cfg.decoder_hidden_dim, cfg.dropout_of("decoder", "out")
    return RecurrentDecoder(
        SourceMemory(cfg.source_dim, hidden, cfg.decoder_layers, cfg.attention),
        DecoderLstm(
            cfg.decoder_embedding_dim,
            hidden,
            cfg.decoder_layers,
            dropout,
            cfg.residual,
            cfg.attention,
            cfg.input_feeding,
        ),
        _projection(cfg),
        dropout,
    )


def _projection(cfg: LstmDecoderFields) -> nn.Module | None:
    """Make the map from states to the width of the output table; None if they have it."""
    if not cfg.maps_output:
        return None
    return UniformLinear(cfg.decoder_hidden_dim, cfg.output_dim)


def _tables(
    cfg: RecurrentConfig, vocab_size: int, source_vocab_size: int, pad_id: int
) -> tuple[TokenEmbedding, TokenEmbedding | None, nn.Linear | None]:
    """Make the tables of target, source and output; None for those that share the first."""
    assert not cfg.shares_inputs or source_vocab_size == vocab_size, "one table has one size"
    target, output = _target_tables(cfg, vocab_size, pad_id)
    source = None
    if not cfg.shares_inputs:
        source = _Table(source_vocab_size, cfg.encoder_embedding_dim, pad_id, scaled=False)
    return target, source, output


def _lm_tables(
    cfg: RecurrentLmConfig, vocab_size: int, pad_id: int
) -> tuple[TokenEmbedding, nn.Linear | AdaptiveSoftmax | None]:
    """Make the table of a language model and its output; None if the output shares the table."""
    if cfg.adaptive is None:
        return _target_tables(cfg, vocab_size, pad_id)
    from ds_seq.models.build.adaptive import make_adaptive_softmax  # only where it is used

    table = _Table(vocab_size, cfg.decoder_embedding_dim, pad_id, scaled=False)
    return table, make_adaptive_softmax(cfg.adaptive, cfg.decoder_hidden_dim, vocab_size)


def _target_tables(
    cfg: LstmDecoderFields, vocab_size: int, pad_id: int
) -> tuple[TokenEmbedding, nn.Linear | None]:
    """Make the tables of target and output; None if the output shares the first."""
    tied = cfg.output_bias and cfg.shares_output
    target = _Table(vocab_size, cfg.decoder_embedding_dim, pad_id, scaled=False, biased=tied)
    output = None
    if not cfg.shares_output:
        output = UniformLinear(cfg.output_dim, vocab_size, bias=cfg.output_bias)
    return target, output
