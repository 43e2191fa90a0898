"""From a model config to a model: the only file of this package that knows configuration."""

from __future__ import annotations

import torch
from torch import nn

from ds_seq.config.model import ModelConfig, MoeConfig, Stack
from ds_seq.models.init import initialize
from ds_seq.models.layers import TransformerDecoderLayer, TransformerEncoderLayer
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.models.stack import TransformerDecoder, TransformerEncoder
from ds_seq.modules.attention import CrossAttention, SelfAttention
from ds_seq.modules.embedding import TokenEmbedding
from ds_seq.modules.feed_forward import FeedForward
from ds_seq.modules.linear import Linear
from ds_seq.modules.positions import LearnedPositions, RotaryPositions, SinusoidalPositions
from ds_seq.moe.layer import MoeFeedForward


def build_seq2seq(
    cfg: ModelConfig,
    vocab_size: int,
    expert_parallel: int = 1,
    expert_parallel_rank: int = 0,
    seed: int = 1,
    pad_id: int = 1,
) -> Seq2SeqTransformer:
    """Build and initialise a Transformer.

    Args:
        cfg: what the model is.
        vocab_size: number of tokens, the same on both sides.
        expert_parallel: over how many ranks the experts of a layer are spread.
        expert_parallel_rank: which of them this process is.
        seed: decides all parameters; the dense ones are equal for any `expert_parallel`, and an
            expert is equal wherever it lives.
        pad_id: the padding token.
    """
    # Parts draw on construction what `initialize` replaces: keep the global random state out of it.
    with torch.random.fork_rng(devices=[]):
        model = _Builder(cfg, vocab_size, expert_parallel, expert_parallel_rank, seed, pad_id)()
    initialize(model, seed)
    return model


class _Builder:
    """One walk over a config; counts the sparse layers that it has built."""

    def __init__(
        self,
        cfg: ModelConfig,
        vocab_size: int,
        expert_parallel: int,
        expert_parallel_rank: int,
        seed: int,
        pad_id: int,
    ) -> None:
        self.cfg = cfg
        self.vocab_size = vocab_size
        self.expert_parallel = expert_parallel
        self.expert_parallel_rank = expert_parallel_rank
        self.seed = seed
        self.pad_id = pad_id
        self.num_sparse_layers = 0

    def __call__(self) -> Seq2SeqTransformer:
        shared = self.cfg.share_embeddings
        return Seq2SeqTransformer(
            encoder=self._encoder(),
            decoder=self._decoder(),
            target_embedding=self._embedding(),
            source_embedding=None if shared == "all" else self._embedding(),
            output=self._output() if shared == "none" else None,
            pad_id=self.pad_id,
            max_positions=self.cfg.max_positions,
        )

    def _embedding(self) -> TokenEmbedding:
        return TokenEmbedding(self.vocab_size, self.cfg.d_model, self.pad_id)

    def _output(self) -> nn.Linear:
        return Linear(self.cfg.d_model, self.vocab_size, bias=False)

    def _encoder(self) -> TransformerEncoder:
        cfg = self.cfg
        layers = [
            TransformerEncoderLayer(
                self_attention=self._self_attention(causal=False),
                feed_forward=self._feed_forward("encoder", index),
                d_model=cfg.d_model,
                dropout=cfg.dropout,
                pre_norm=cfg.norm_position == "pre",
            )
            for index in range(cfg.encoder_layers)
        ]
        return TransformerEncoder(
            layers,
            self._positions(),
            self._final_norm(),
            cfg.dropout,
            cfg.activation_checkpointing,
        )

    def _decoder(self) -> TransformerDecoder:
        cfg = self.cfg
        layers = [
            TransformerDecoderLayer(
                self_attention=self._self_attention(causal=True),
                cross_attention=CrossAttention(cfg.d_model, cfg.num_heads, cfg.attention_dropout),
                feed_forward=self._feed_forward("decoder", index),
                d_model=cfg.d_model,
                dropout=cfg.dropout,
                pre_norm=cfg.norm_position == "pre",
            )
            for index in range(cfg.decoder_layers)
        ]
        return TransformerDecoder(
            layers,
            self._positions(),
            self._final_norm(),
            cfg.dropout,
            cfg.activation_checkpointing,
        )

    def _self_attention(self, causal: bool) -> SelfAttention:
        cfg = self.cfg
        rotary = (
            RotaryPositions(cfg.d_model // cfg.num_heads) if cfg.positions == "rotary" else None
        )
        return SelfAttention(cfg.d_model, cfg.num_heads, cfg.attention_dropout, causal, rotary)

    def _positions(self) -> nn.Module | None:
        cfg = self.cfg
        if cfg.positions == "sinusoidal":
            return SinusoidalPositions(cfg.d_model)
        if cfg.positions == "learned":
            return LearnedPositions(cfg.max_positions, cfg.d_model)
        return None  # rotary: inside self-attention

    def _final_norm(self) -> nn.LayerNorm | None:
        return nn.LayerNorm(self.cfg.d_model) if self.cfg.norm_position == "pre" else None

    def _feed_forward(self, stack: Stack, index: int) -> nn.Module:
        moe = self.cfg.moe
        if moe is None or not moe.has_experts(stack, index):
            return self._dense()
        return self._sparse(moe)

    def _dense(self) -> FeedForward:
        cfg = self.cfg
        return FeedForward(cfg.d_model, cfg.ffn_dim, cfg.activation, cfg.activation_dropout)

    def _sparse(self, moe: MoeConfig) -> MoeFeedForward:
        cfg = self.cfg
        normalize = moe.top_k > 1 if moe.normalize_weights is None else moe.normalize_weights
        layer = MoeFeedForward(
            d_model=cfg.d_model,
            ffn_dim=cfg.ffn_dim,
            num_experts=moe.num_experts,
            top_k=moe.top_k,
            activation=cfg.activation,
            dropout=cfg.activation_dropout,
            expert_parallel=self.expert_parallel,
            expert_parallel_rank=self.expert_parallel_rank,
            capacity_factor=moe.capacity_factor,
            eval_capacity_factor=moe.eval_capacity_factor,
            min_capacity=moe.min_capacity,
            noise=moe.noise,
            normalize_weights=normalize,
            residual=self._dense() if moe.residual else None,
            layer_index=self.num_sparse_layers,
            seed=self.seed,
        )
        self.num_sparse_layers += 1
        return layer
