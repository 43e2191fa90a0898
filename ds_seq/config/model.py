"""What the model is. Where it runs (expert parallelism) stands in `train`."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ds_seq.config.base import (
    EXTERNAL_PATTERN,
    Config,
    FieldErrors,
    PositiveInt,
    Probability,
)
from ds_seq.config.moe import STACKS, MoeConfig, Stack
from ds_seq.config.presets import PRESETS, apply_preset
from ds_seq.plugins import nearest

# the tags of the other plug-in points come from their unions; all models share one class
MODEL_NAMES = ("transformer",)


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
        errors += self._moe_errors()
        if errors:
            raise FieldErrors(errors)
        return self

    def _moe_errors(self) -> list[tuple[str, str]]:
        if self.moe is None:
            return []
        for stack in STACKS:
            outside = [i for i in self.moe_layers(stack) if i >= self._num_layers(stack)]
            if outside:
                return [
                    (
                        f"moe.layers.{stack}",
                        f"{outside[0]}, but {stack}_layers is {self._num_layers(stack)} and layers "
                        "are counted from 0",
                    )
                ]
        if not self.num_moe_layers:
            key = "moe.every" if self.moe.layers is None else "moe.layers"
            reason = f"{self.moe.every} is more than the layers" if key == "moe.every" else "empty"
            return [(key, f"no layer has experts: {reason}")]
        counts = self.moe.num_experts
        if isinstance(counts, list) and len(counts) != self.num_moe_layers:
            where = ", ".join(f"{stack} {self.moe_layers(stack)}" for stack in STACKS)
            return [
                (
                    "moe.num_experts",
                    f"{len(counts)} counts for {self.num_moe_layers} MoE layers ({where})",
                )
            ]
        return []

    def _num_layers(self, stack: Stack) -> int:
        return self.encoder_layers if stack == "encoder" else self.decoder_layers

    def moe_layers(self, stack: Stack) -> list[int]:
        """The layers (from 0) of ``stack`` that have experts."""
        return [] if self.moe is None else self.moe.moe_layers(stack, self._num_layers(stack))

    @property
    def num_moe_layers(self) -> int:
        """How many layers have experts, over both stacks."""
        return sum(len(self.moe_layers(stack)) for stack in STACKS)

    @property
    def experts_per_layer(self) -> list[int]:
        """Number of experts of each MoE layer, those of the encoder first."""
        if self.moe is None:
            return []
        counts = self.moe.num_experts
        return counts if isinstance(counts, list) else [counts] * self.num_moe_layers

    def experts_in(self, stack: Stack, layer: int) -> int:
        """Number of experts of layer ``layer`` (from 0) of ``stack``; 0 for a dense one."""
        mine = self.moe_layers(stack)
        if layer not in mine:
            return 0
        before = 0 if stack == "encoder" else len(self.moe_layers("encoder"))
        return self.experts_per_layer[before + mine.index(layer)]
