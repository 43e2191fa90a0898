"""Build dense and sparse feed-forwards."""

from __future__ import annotations

from torch import nn

from ds_seq.config.model import ExternalRouterConfig, MoeConfig, TransformerConfig
from ds_seq.errors import UserError
from ds_seq.models.build.linear import linear_maker, make_bits
from ds_seq.models.build.norm import make_norm
from ds_seq.modules.body import Body
from ds_seq.modules.feed_forward import FeedForward
from ds_seq.moe.branch import ConditionalBranch, ResidualBranch, SharedBranch
from ds_seq.moe.choice import SoftmaxChoice
from ds_seq.moe.cosine import CosineRouter
from ds_seq.moe.expert_choice import ExpertChoiceRouter
from ds_seq.moe.experts import Experts
from ds_seq.moe.hash import TokenHashRouter
from ds_seq.moe.language import LanguageRouter
from ds_seq.moe.layer import MoeFeedForward
from ds_seq.moe.router import Router, SoftmaxRouter
from ds_seq.moe.sigmoid import SigmoidRouter
from ds_seq.names import Stack
from ds_seq.plugins import import_object


def routes_by_tag(cfg: TransformerConfig) -> bool:
    """Return whether any feed-forward needs the embedding of the source's language tag."""
    if cfg.moe is None:
        return False
    # an external router may use the tag, and providing it costs nothing
    return cfg.moe.router == "language" or isinstance(cfg.moe.router, ExternalRouterConfig)


class FeedForwards:
    """Build the feed-forwards of a model, layer by layer, and count the sparse ones.

    Args:
        cfg: config of the model.
        expert_parallel: number of ranks over which the experts of a layer are distributed.
        expert_parallel_rank: index of this process among them.
        seed: seed of the model.
    """

    def __init__(
        self, cfg: TransformerConfig, expert_parallel: int, expert_parallel_rank: int, seed: int
    ) -> None:
        self.cfg = cfg
        self.expert_parallel = expert_parallel
        self.expert_parallel_rank = expert_parallel_rank
        self.seed = seed
        self.num_sparse_layers = 0

    def make(self, stack: Stack, index: int) -> Body:
        """Build the feed-forward of layer `index` of a stack; called in the order of the layers."""
        num_experts = self.cfg.experts_in(stack, index)
        if self.cfg.moe is None or num_experts == 0:
            return self._of_sets(self.cfg.sets_of(stack))
        return self._sparse(self.cfg.moe, num_experts)

    def _of_sets(self, sets: int) -> Body:
        feed_forwards = [self._dense(self.cfg.ffn_dim) for _ in range(sets)]
        if sets == 1:
            return feed_forwards[0]
        from ds_seq.modules.multiway import MultiwayFeedForward

        return MultiwayFeedForward(feed_forwards)

    def _dense(self, ffn_dim: int) -> FeedForward:
        cfg = self.cfg
        width = cfg.inner_width(ffn_dim)
        return FeedForward(
            cfg.d_model,
            width,
            cfg.activation,
            cfg.activation_dropout,
            self._inner_norm(width),
            linear_maker(cfg),
        )

    def _inner_norm(self, width: int) -> nn.Module | None:
        return make_norm(self.cfg, width) if self.cfg.has_inner_norms else None

    def _sparse(self, moe: MoeConfig, num_experts: int) -> MoeFeedForward:
        layer_index = self.num_sparse_layers
        self.num_sparse_layers += 1
        return MoeFeedForward(
            _router(moe, self.cfg.d_model, num_experts, layer_index),
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
        width = self.cfg.inner_width(moe.ffn_dim or self.cfg.ffn_dim)
        return Experts(
            self.cfg.d_model,
            width,
            num_local,
            self.expert_parallel_rank * num_local,
            self.cfg.activation,
            moe.dropout_of_experts(self.cfg.activation_dropout),
            self.seed * 1000 + layer_index,
            self._inner_norm(width),
            make_bits(self.cfg),
            self.cfg.linear_bias,
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


def _router(moe: MoeConfig, d_model: int, num_experts: int, layer: int) -> Router:
    if isinstance(moe.router, ExternalRouterConfig):
        return _external_router(moe.router, d_model, num_experts, moe.top_k)
    if moe.router == "expert_choice":
        return ExpertChoiceRouter(d_model, num_experts, moe.top_k, moe.capacity_factor or 1.0)
    if moe.router == "language":
        return LanguageRouter(d_model, num_experts, moe.top_k, moe.load_balance)
    if moe.router == "hash":
        return TokenHashRouter(num_experts, moe.top_k, layer)
    if moe.router == "sigmoid":
        rate, noise, balance = moe.bias_rate, moe.noise, moe.load_balance
        return SigmoidRouter(d_model, num_experts, moe.top_k, rate, noise, balance)
    # if normalized before dropping, weights are shares when the second expert is drawn
    by_share = moe.normalization == "before_dropping"
    choice = SoftmaxChoice(moe.top_k, moe.noise, moe.second_expert, by_share)
    if moe.router == "cosine":
        return CosineRouter(d_model, num_experts, choice, moe.router_dim, moe.load_balance)
    return SoftmaxRouter(d_model, num_experts, choice, moe.load_balance)


def _external_router(
    config: ExternalRouterConfig, d_model: int, num_experts: int, top_k: int
) -> Router:
    where = "model.moe.router"
    make = import_object(config.name, where)
    router = make(d_model=d_model, num_experts=num_experts, top_k=top_k, **config.options)
    if not isinstance(router, Router):
        raise UserError(
            f"{where}: {config.name} gave {type(router).__name__}, not a ds_seq.moe.router.Router"
        )
    return router
