"""The `model.moe` section: which layers have experts, and how tokens are routed to them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from ds_seq.config.base import (
    Config,
    FieldErrors,
    NonNegativeInt,
    PositiveInt,
    Probability,
    shown,
)
from ds_seq.config.model.moe_checks import router_errors
from ds_seq.config.model.router import ExternalRouterConfig, RouterConfig, router_params
from ds_seq.config.model.stack import StackFields, Width
from ds_seq.names import (
    BUDGET,
    LOAD_BALANCE,
    ROUTER_LOSSES,
    ROUTER_Z,
    STACKS,
    Drop,
    LoadBalance,
    Noise,
    Normalization,
    Placement,
    SecondExpert,
    Stack,
)


class MoeLayersConfig(Config):
    """Explicit list of the layers with experts, counted from 0."""

    encoder: list[NonNegativeInt] = Field(
        default=[], description="Encoder layers that have experts."
    )
    decoder: list[NonNegativeInt] = Field(
        default=[], description="Decoder layers that have experts."
    )


class MoeConfig(Config):
    """Mixture-of-Experts feed-forward: which layers have one and how tokens are routed."""

    num_experts: Width | list[Width] = Field(
        default=8,
        description="Experts per layer, over all ranks; a list sets the count of each MoE layer "
        "(pyramid), encoder first.",
    )
    top_k: PositiveInt = Field(
        default=1,
        description="Experts per token; with `router: expert_choice` on average.",
    )
    placement: Placement = Field(default="both", description="Stacks that have experts.")
    every: PositiveInt = Field(
        default=2, description="Every n-th layer has experts: layer i (from 0) if (i + 1) % n == 0."
    )
    layers: MoeLayersConfig | None = Field(
        default=None, description="Layers that have experts, instead of `every`."
    )
    ffn_dim: Width | None = Field(
        default=None, description="Inner width of each expert; null means `model.ffn_dim`."
    )
    expert_dropout: Probability | None = Field(
        default=None,
        description="Dropout inside routed experts, in place of `model.activation_dropout`; null: "
        "that one. Experts see few tokens each and overfit first (Switch's expert dropout).",
    )
    router: RouterConfig = Field(
        default="softmax",
        description="Router: `softmax` scores; `cosine` similarity in a low-dimensional space "
        "(X-MoE); `sigmoid` scores with a bias that balances the load without a loss "
        "(DeepSeek-V3); `expert_choice`, where experts choose tokens of each sentence (encoder "
        "only); `language`, one choice per sentence by the language tag of the source; `hash`, a "
        "fixed choice by the token (a baseline); or "
        "`package.module:Name`, given as a name or as `{name, options}` and called with "
        "`d_model`, `num_experts`, `top_k` and the options.",
    )
    router_dim: Width | None = Field(
        default=None,
        description="Width of the low-dimensional space of `router: cosine`; null means half the "
        "number of experts, but at least 16.",
    )
    bias_rate: float = Field(
        default=0.001,
        ge=0.0,
        le=1.0,  # of scores between 0 and 1
        description="Step size of each expert's bias per update with `router: sigmoid`.",
    )
    noise: Noise = Field(
        default="none",
        description="Exploration noise of the router in training: `jitter` scales its input by "
        "U(0.99, 1.01), `gumbel` samples the choice.",
    )
    second_expert: SecondExpert = Field(
        default="always",
        description="Choice of the second expert with `top_k` 2 in training: the next best; "
        "sampled with Gumbel noise; or kept with a probability of twice its weight (GShard).",
    )
    normalize_weights: Normalization | None = Field(
        default=None,
        description="Normalize the weights of a token's experts to sum to 1, before or after "
        "tokens are dropped; null normalizes after dropping if `top_k` > 1. With `top_k` 1 the "
        "weight is then 1, and the router learns by a straight-through gradient.",
    )
    capacity_factor: float | None = Field(
        default=1.25,
        gt=0.0,
        le=1e6,
        description="Capacity of an expert in training, as a multiple of its even share of the "
        "tokens; null never drops tokens. With `router: expert_choice` an expert takes exactly "
        "this many (null: 1), also in evaluation; `router: language` never drops tokens.",
    )
    eval_capacity_factor: float | None = Field(
        default=None,
        gt=0.0,
        le=1e6,
        description="Capacity in validation and generation; null never drops.",
    )
    min_capacity: NonNegativeInt = Field(
        default=4, description="Minimum capacity of an expert in tokens, whatever the factor."
    )
    drop: Drop = Field(
        default="position",
        description="Tokens kept when an expert is full: earlier tokens, tokens with a higher best "
        "score, or a random choice (in training; otherwise earlier tokens).",
    )
    residual: bool = Field(
        default=False,
        description="Residual MoE (PR-MoE): a dense feed-forward in parallel with the experts, "
        "combined by learned weights.",
    )
    shared_experts: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=0,
        description="Experts applied to every token, in addition to the routed ones (DeepSeekMoE); "
        "implemented as one feed-forward of this many times the width of an expert.",
    )
    conditional_budget: float | None = Field(
        default=None,
        gt=0.0,
        le=1.0,
        description="Conditional MoE routing (NLLB): a gate chooses between a dense feed-forward "
        "and the experts; the loss `budget` pulls the experts' share toward this value. Null "
        "disables it.",
    )
    conditional_dropout: Probability = Field(
        default=0.0,
        description="Probability in training that this gate sends a token only to the dense "
        "feed-forward.",
    )
    output_masking: Probability = Field(
        default=0.0,
        description="Probability in training that the output of an expert chosen by a token is "
        "masked (NLLB's expert output masking).",
    )
    load_balance: LoadBalance = Field(
        default="rank",
        description="Tokens over which the loss `load_balance` is computed: the batch of each "
        "rank, or those of all ranks (costs a small all-reduce per layer).",
    )

    @field_validator("num_experts", mode="before")
    @classmethod
    def _check_num_experts(cls, value: Any) -> Any:
        counts = value if isinstance(value, list) else [value]
        if not counts or any(type(n) is not int or n < 1 for n in counts):
            raise ValueError(
                f"should be a whole number of at least 1, or a list of them, not {shown(value)}"
            )
        return value

    @model_validator(mode="after")
    def _check_routing(self) -> MoeConfig:
        errors = self._layer_errors()
        errors += router_errors(self)
        least = min(self.counts)
        if self.top_k > least:
            errors.append(("top_k", f"{self.top_k} is more than num_experts {least}"))
        branches = {
            "residual": self.residual,
            "shared_experts": self.shared_experts > 0,
            "conditional_budget": self.conditional_budget is not None,
        }
        used = [name for name, is_used in branches.items() if is_used]
        if len(used) > 1:
            errors.append((used[1], f"cannot be combined with {used[0]}; use only one of them"))
        if self.conditional_dropout and self.conditional_budget is None:
            errors.append(("conditional_dropout", "needs conditional_budget"))
        if errors:
            raise FieldErrors(errors)
        return self

    def _layer_errors(self) -> list[tuple[str, str]]:
        if self.layers is None:
            return []
        errors = []
        for stack in STACKS:
            chosen = self._listed(stack)
            if chosen and self.placement not in (stack, "both"):
                errors.append(
                    (f"layers.{stack}", f"placement is {self.placement}; set placement to both")
                )
            if len(set(chosen)) < len(chosen):
                errors.append((f"layers.{stack}", f"lists a layer twice: {chosen}"))
        return errors

    def _listed(self, stack: Stack) -> list[int]:
        if self.layers is None:
            return []
        return self.layers.encoder if stack == "encoder" else self.layers.decoder

    @property
    def counts(self) -> list[int]:
        """`num_experts` as a list."""
        return self.num_experts if isinstance(self.num_experts, list) else [self.num_experts]

    @property
    def losses(self) -> tuple[str, ...]:
        """Names of the losses of the layers; those of an external router are not known."""
        names = [BUDGET] if self.conditional_budget is not None else []
        if isinstance(self.router, ExternalRouterConfig):
            return ROUTER_LOSSES
        if self.router != "expert_choice":
            names.append(LOAD_BALANCE)
        return (*names, ROUTER_Z)

    @property
    def has_capacity(self) -> bool:
        """Whether experts have a limited capacity: not with `expert_choice`, nor with `language`,
        where the text determines the number of tokens per expert."""
        return self.router not in ("expert_choice", "language")

    @property
    def normalization(self) -> Normalization:
        """`normalize_weights` with its default resolved."""
        if self.normalize_weights is not None:
            return self.normalize_weights
        # with `expert_choice`, the expert's score is the weight of the token
        chosen_by_token = self.router != "expert_choice"
        return "after_dropping" if self.top_k > 1 and chosen_by_token else "none"

    def dropout_of_experts(self, elsewhere: float) -> float:
        """Return the dropout inside experts, given `model.activation_dropout`."""
        return elsewhere if self.expert_dropout is None else self.expert_dropout

    def moe_layers(self, stack: Stack, num_layers: int) -> list[int]:
        """Return the layers (from 0) of a `stack` of `num_layers` that have experts."""
        if self.placement not in (stack, "both"):
            return []
        if self.layers is not None:
            return sorted(self._listed(stack))
        return [i for i in range(num_layers) if (i + 1) % self.every == 0]

    def num_params(self, d_model: int, num_experts: int) -> int:
        """Return the number of parameters of the router and of the mixing of the dense branch."""
        mixing = 0
        if self.residual:  # one weight vector for each of the two, with biases
            mixing = 2 * d_model + 2
        elif self.conditional_budget is not None:
            mixing = d_model + 1
        return router_params(self.router, self.router_dim, d_model, num_experts) + mixing

    def dense_width(self, expert_width: int) -> int:
        """Return the inner width of the dense branch for experts of `expert_width`; 0: none."""
        if self.shared_experts:
            return self.shared_experts * expert_width
        is_mixed = self.residual or self.conditional_budget is not None
        return expert_width if is_mixed else 0


class MoeFields(StackFields):
    """Placement and number of the experts of a model."""

    moe: MoeConfig | None = Field(
        default=None, description="Mixture-of-Experts feed-forwards; null means a dense model."
    )

    def moe_errors(self) -> list[tuple[str, str]]:
        """Return incompatible settings as (field, message) pairs."""
        if self.moe is None:
            return []
        for stack in self.stacks:
            depth = self.layers_of(stack)
            outside = [i for i in self.moe_layers(stack) if i >= depth]
            if outside:
                return [
                    (
                        f"moe.layers.{stack}",
                        f"{outside[0]}, but {stack}_layers is {depth} and layers are counted from "
                        "0",
                    )
                ]
        if not self.num_moe_layers:
            key = "moe.every" if self.moe.layers is None else "moe.layers"
            reason = f"{self.moe.every} is more than the layers" if key == "moe.every" else "empty"
            return [(key, f"no layer has experts: {reason}")]
        counts = self.moe.num_experts
        if isinstance(counts, list) and len(counts) != self.num_moe_layers:
            where = ", ".join(f"{stack} {self.moe_layers(stack)}" for stack in self.stacks)
            return [
                (
                    "moe.num_experts",
                    f"{len(counts)} counts for {self.num_moe_layers} MoE layers ({where})",
                )
            ]
        return []

    def moe_layers(self, stack: Stack) -> list[int]:
        """Return the layers (from 0) of `stack` that have experts."""
        return [] if self.moe is None else self.moe.moe_layers(stack, self.layers_of(stack))

    @property
    def num_moe_layers(self) -> int:
        """Number of layers with experts, over all stacks."""
        return sum(len(self.moe_layers(stack)) for stack in self.stacks)

    @property
    def experts_per_layer(self) -> list[int]:
        """Number of experts of each MoE layer, encoder first."""
        if self.moe is None:
            return []
        counts = self.moe.num_experts
        return counts if isinstance(counts, list) else [counts] * self.num_moe_layers

    def expert_counts(self, stack: Stack) -> list[int]:
        """Return the number of experts of each layer of `stack`; 0 for a dense one."""
        earlier = self.stacks[: self.stacks.index(stack)]
        before = sum(len(self.moe_layers(other)) for other in earlier)
        counts, per_layer = [0] * self.layers_of(stack), self.experts_per_layer
        for number, layer in enumerate(self.moe_layers(stack), before):
            counts[layer] = per_layer[number]
        return counts

    def experts_in(self, stack: Stack, layer: int) -> int:
        """Return the number of experts of layer `layer` (from 0) of `stack`; 0 if it is dense."""
        return self.expert_counts(stack)[layer]
