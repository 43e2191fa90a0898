"""What the model is. Where it runs (expert parallelism) stands in `train`."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ds_seq.config.base import (
    EXTERNAL_PATTERN,
    Config,
    FieldErrors,
    NonNegativeInt,
    PositiveInt,
    Probability,
)
from ds_seq.config.presets import PRESETS, apply_preset
from ds_seq.plugins import nearest

Stack = Literal["encoder", "decoder"]
# the tags of the other plug-in points come from their unions; all models share one class
MODEL_NAMES = ("transformer",)


class MoeConfig(Config):
    """Mixture-of-Experts feed-forward: which layers have one and how tokens are routed."""

    num_experts: PositiveInt = Field(default=8, description="Experts a layer, over all ranks.")
    top_k: PositiveInt = Field(default=1, description="Experts a token visits.")
    placement: Literal["encoder", "decoder", "both"] = Field(
        default="both", description="The stacks that have experts."
    )
    every: PositiveInt = Field(
        default=2, description="Every n-th layer has experts: layer i (from 0) if (i + 1) % n == 0."
    )
    capacity_factor: float | None = Field(
        default=1.25,
        gt=0.0,
        description="In training an expert takes at most this times its even share of the tokens; "
        "null drops none.",
    )
    eval_capacity_factor: float | None = Field(
        default=None, gt=0.0, description="The same for validation and generation; null drops none."
    )
    min_capacity: NonNegativeInt = Field(
        default=4, description="An expert takes at least this many tokens whatever the factor."
    )
    noise: Literal["none", "jitter", "gumbel"] = Field(
        default="none",
        description="Exploration of the gate in training: `jitter` scales its input by "
        "U(0.99, 1.01), `gumbel` samples the choice.",
    )
    normalize_weights: bool | None = Field(
        default=None,
        description="Scale the weights of a token's experts to sum 1; null does if `top_k` > 1.",
    )
    residual: bool = Field(
        default=False,
        description="Residual MoE: a dense feed-forward beside the experts, in a learned mixture.",
    )

    @model_validator(mode="after")
    def _check_routing(self) -> MoeConfig:
        errors = []
        if self.top_k > self.num_experts:
            errors.append(("top_k", f"{self.top_k} is more than num_experts {self.num_experts}"))
        if self.top_k == 1 and self.normalize_weights:
            errors.append(
                (
                    "normalize_weights",
                    "with top_k 1 every weight would be 1 and the gate could not learn; "
                    "use false or null",
                )
            )
        if errors:
            raise FieldErrors(errors)
        return self

    def has_experts(self, stack: Stack, layer: int) -> bool:
        """Whether layer ``layer`` (from 0) of ``stack`` has experts."""
        return self.placement in (stack, "both") and (layer + 1) % self.every == 0


class ModelConfig(Config):
    """An encoder-decoder Transformer."""

    name: str = Field(
        default="transformer", description="`transformer`, or `package.module:Name` of a builder."
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="Free-form options of an external model; others take none.",
    )
    preset: str | None = Field(
        default=None,
        description="Named sizes for the fields that are not given: "
        + ", ".join(f"`{name}`" for name in PRESETS)
        + ".",
    )
    d_model: PositiveInt = Field(default=512, description="Width of the model.")
    encoder_layers: PositiveInt = Field(default=6, description="Layers of the encoder.")
    decoder_layers: PositiveInt = Field(default=6, description="Layers of the decoder.")
    num_heads: PositiveInt = Field(default=8, description="Attention heads.")
    ffn_dim: PositiveInt = Field(
        default=2048, description="Inner width of the feed-forwards and of each expert."
    )
    activation: Literal["relu", "gelu", "swiglu"] = Field(
        default="relu", description="Activation of the feed-forwards and of the experts."
    )
    dropout: Probability = Field(
        default=0.1, description="Dropout on embeddings and on the output of each sub-layer."
    )
    attention_dropout: Probability = Field(default=0.0, description="Dropout on attention weights.")
    activation_dropout: Probability = Field(
        default=0.0, description="Dropout after the activation of the feed-forwards."
    )
    norm_position: Literal["pre", "post"] = Field(
        default="post",
        description="Layer norm before each sub-layer (steadier) or after the residual sum "
        "(the Transformer of 2017).",
    )
    positions: Literal["sinusoidal", "learned", "rotary"] = Field(
        default="sinusoidal", description="How the model knows the order of the tokens."
    )
    max_positions: PositiveInt = Field(
        default=1024, description="Longest sentence the model can take, in subwords."
    )
    share_embeddings: Literal["none", "decoder", "all"] = Field(
        default="all",
        description="Tables that are one: none; decoder input and output; all three.",
    )
    activation_checkpointing: bool = Field(
        default=False, description="Recompute each layer in the backward pass: less memory, slower."
    )
    moe: MoeConfig | None = Field(
        default=None, description="Mixture-of-Experts feed-forwards; null is a dense model."
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, section: Any) -> Any:
        preset = section.get("preset") if isinstance(section, dict) else None
        if not isinstance(preset, str) or preset not in PRESETS:
            return section  # an unknown preset is reported by the field's own check
        return apply_preset(section, preset)

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if name not in MODEL_NAMES and not re.match(EXTERNAL_PATTERN, name):
            raise ValueError(
                f"no model {name!r}{nearest(name, MODEL_NAMES)}; there are "
                f"{', '.join(MODEL_NAMES)}, or `package.module:Name`"
            )
        return name

    @field_validator("preset")
    @classmethod
    def _check_preset(cls, preset: str | None) -> str | None:
        if preset is not None and preset not in PRESETS:
            raise ValueError(f"no preset {preset!r}{nearest(preset, PRESETS)}")
        return preset

    @model_validator(mode="after")
    def _check_sizes(self) -> ModelConfig:
        errors = []
        if self.d_model % self.num_heads:
            errors.append(
                ("num_heads", f"{self.num_heads} does not divide model.d_model {self.d_model}")
            )
        elif self.positions == "rotary" and (self.d_model // self.num_heads) % 2:
            errors.append(
                (
                    "positions",
                    "rotary turns pairs of features, so d_model / num_heads must be even, "
                    f"not {self.d_model // self.num_heads}",
                )
            )
        if self.positions == "sinusoidal" and self.d_model % 2:
            errors.append(
                ("d_model", f"sinusoidal positions need an even width, not {self.d_model}")
            )
        if self.options and self.name in MODEL_NAMES:
            errors.append(
                ("options", "only an external model (`package.module:Name`) takes options")
            )
        if self.moe is not None and not self.num_moe_layers:
            errors.append(
                ("moe.every", f"no layer has experts: {self.moe.every} is more than the layers")
            )
        if errors:
            raise FieldErrors(errors)
        return self

    @property
    def num_moe_layers(self) -> int:
        """How many layers have experts, over both stacks."""
        if self.moe is None:
            return 0
        encoder = sum(self.moe.has_experts("encoder", i) for i in range(self.encoder_layers))
        decoder = sum(self.moe.has_experts("decoder", i) for i in range(self.decoder_layers))
        return encoder + decoder
