"""From a model config to a model: the only file of this package that knows configuration."""

from __future__ import annotations

import torch
from torch import nn

from ds_seq.config.model import MoeConfig, TransformerConfig
from ds_seq.models.init import initialize
from ds_seq.models.layers import TransformerDecoderLayer, TransformerEncoderLayer
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.models.stack import TransformerDecoder, TransformerEncoder
from ds_seq.modules.attention import CrossAttention, SelfAttention
from ds_seq.modules.embedding import TokenEmbedding
from ds_seq.modules.feed_forward import FeedForward
from ds_seq.modules.linear import Linear
from ds_seq.modules.positions import LearnedPositions, RotaryPositions, SinusoidalPositions
from ds_seq.moe.branch import ConditionalBranch, ResidualBranch, SharedBranch
from ds_seq.moe.choice import SoftmaxChoice
from ds_seq.moe.cosine import CosineGate
from ds_seq.moe.expert_choice import ExpertChoiceGate
from ds_seq.moe.experts import Experts
from ds_seq.moe.gate import Router, TopKGate
from ds_seq.moe.language import LanguageGate
from ds_seq.moe.layer import MoeFeedForward
from ds_seq.moe.sigmoid import SigmoidGate
from ds_seq.names import Stack


def build_seq2seq(
    cfg: TransformerConfig,
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
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = cfg.norm.eps
    initialize(model, seed)
    return model


class _Builder:
    """One walk over a config; counts the sparse layers that it has built."""

    def __init__(
        self,
        cfg: TransformerConfig,
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
            max_positions=self.cfg.max_positions,
            routes_by_tag=self.cfg.moe is not None and self.cfg.moe.router == "language",
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
        turned = cfg.positions.name == "rotary"
        rotary = RotaryPositions(cfg.d_model // cfg.num_heads) if turned else None
        return SelfAttention(cfg.d_model, cfg.num_heads, cfg.attention_dropout, causal, rotary)

    def _positions(self) -> nn.Module | None:
        cfg = self.cfg
        if cfg.positions.name == "sinusoidal":
            return SinusoidalPositions(cfg.d_model)
        if cfg.positions.name == "learned":
            return LearnedPositions(cfg.max_positions, cfg.d_model)
        return None  # rotary: inside self-attention

    def _final_norm(self) -> nn.LayerNorm | None:
        return nn.LayerNorm(self.cfg.d_model) if self.cfg.norm_position == "pre" else None

    def _feed_forward(self, stack: Stack, index: int) -> nn.Module:
        num_experts = self.cfg.experts_in(stack, index)
        if self.cfg.moe is None or num_experts == 0:
            return self._dense(self.cfg.ffn_dim)
        return self._sparse(self.cfg.moe, num_experts)

    def _dense(self, ffn_dim: int) -> FeedForward:
        cfg = self.cfg
        return FeedForward(cfg.d_model, ffn_dim, cfg.activation, cfg.activation_dropout)

    def _sparse(self, moe: MoeConfig, num_experts: int) -> MoeFeedForward:
        layer_index = self.num_sparse_layers
        self.num_sparse_layers += 1
        return MoeFeedForward(
            _router(moe, self.cfg.d_model, num_experts),
            self._experts(moe, num_experts, layer_index),
            capacity_factor=moe.capacity_factor if moe.has_capacity else None,
            eval_capacity_factor=moe.eval_capacity_factor if moe.has_capacity else None,
            min_capacity=moe.min_capacity,
            drop=moe.drop,
            normalize_weights=moe.normalization,
            branch=self._branch(moe),
            output_masking=moe.output_masking,
        )

    def _experts(self, moe: MoeConfig, num_experts: int, layer_index: int) -> Experts:
        num_local, rest = divmod(num_experts, self.expert_parallel)
        if rest:
            raise ValueError(
                f"expert_parallel={self.expert_parallel} must divide num_experts={num_experts}"
            )
        return Experts(
            self.cfg.d_model,
            moe.ffn_dim or self.cfg.ffn_dim,
            num_local,
            self.expert_parallel_rank * num_local,
            self.cfg.activation,
            self.cfg.activation_dropout,
            self.seed * 1000 + layer_index,
        )

    def _branch(self, moe: MoeConfig) -> nn.Module | None:
        d_model, width = self.cfg.d_model, moe.ffn_dim or self.cfg.ffn_dim
        if moe.residual:
            return ResidualBranch(self._dense(width), d_model)
        if moe.shared_experts:
            return SharedBranch(self._dense(moe.shared_experts * width))
        if moe.conditional_budget is not None:
            return ConditionalBranch(
                self._dense(width), d_model, moe.conditional_budget, moe.conditional_dropout
            )
        return None


def _router(moe: MoeConfig, d_model: int, num_experts: int) -> Router:
    if moe.router == "expert_choice":
        return ExpertChoiceGate(d_model, num_experts, moe.top_k, moe.capacity_factor or 1.0)
    if moe.router == "language":
        return LanguageGate(d_model, num_experts, moe.top_k, moe.load_balance)
    if moe.router == "sigmoid":
        rate, noise, balance = moe.bias_rate, moe.noise, moe.load_balance
        return SigmoidGate(d_model, num_experts, moe.top_k, rate, noise, balance)
    # scaled before tokens are dropped, a second weight is a share already when its lot is drawn
    by_share = moe.normalization == "before_dropping"
    choice = SoftmaxChoice(moe.top_k, moe.noise, moe.second_expert, by_share)
    if moe.router == "cosine":
        return CosineGate(d_model, num_experts, choice, moe.router_dim, moe.load_balance)
    return TopKGate(d_model, num_experts, choice, moe.load_balance)
