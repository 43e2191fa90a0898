"""Adapters: small feed-forwards after the layers, in pools from which each sentence takes one."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from ds_seq.config.base import Config
from ds_seq.config.model.stack import StackFields, Width
from ds_seq.names import GATED_ACTIVATIONS, NO_ADAPTER, ActivationName, Placement, Stack
from ds_seq.plugins import nearest

AdapterId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class AdaptersConfig(Config):
    """A pool of adapters after every layer (Houlsby et al. 2019, Bapna and Firat 2019)."""

    ids: list[AdapterId] = Field(
        min_length=1, description="Names of the adapters, such as domains or languages."
    )
    reduction: Width = Field(
        default=4, description="`model.d_model` divided by the width of the bottleneck."
    )
    activation: ActivationName = Field(default="relu", description="Activation of the bottleneck.")
    gate: bool = Field(
        default=False,
        description="Multiply the output of an adapter by a learned scalar per token, between 0 "
        "and 1.",
    )
    norm: Literal["first", "last"] = Field(
        default="first",
        description="Norm before the bottleneck, with which an untrained adapter changes nothing; "
        "or after the sum with the input, where an untrained one normalizes once more.",
    )
    stacks: Placement = Field(default="both", description="Stacks whose layers have adapters.")
    active: AdapterId | None = Field(
        default=None,
        description="Adapter of sentences that begin with none of `tags`; null: they pass through "
        "none. `ds-seq generate --adapter` chooses another one.",
    )
    tags: dict[str, AdapterId] = Field(
        default={},
        description="Adapter by the tag that begins a source, `{<2de>: de}`, so that the sentences "
        "of a batch may have different ones; tags are symbols of `data.vocab.user_symbols` that "
        "are in the text or added by `data.mixing.language_tags`.",
    )

    def width(self, d_model: int) -> int:
        """Return the width of the bottleneck."""
        return d_model // self.reduction

    def num_params(self, d_model: int, norm_params: int) -> int:
        """Return the number of parameters of one adapter of one layer.

        Args:
            d_model: width of the model.
            norm_params: number of parameters of a norm.
        """
        width, parts = self.width(d_model), 2 if self.activation in GATED_ACTIVATIONS else 1
        gate = d_model + 1 if self.gate else 0
        return parts * (d_model + 1) * width + (width + 1) * d_model + norm_params + gate

    @property
    def used(self) -> list[str]:
        """Ids that sentences may pass through."""
        chosen = {self.active, *self.tags.values()}
        return [name for name in self.ids if name in chosen]

    def errors(self, d_model: int) -> list[tuple[str, str]]:
        """Return incompatible settings as (field, message) pairs."""
        errors = []
        if len(set(self.ids)) < len(self.ids):
            errors.append(("ids", f"has an id twice: {', '.join(self.ids)}"))
        if NO_ADAPTER in self.ids:
            errors.append(("ids", f"{NO_ADAPTER} stands for no adapter; choose another id"))
        if self.width(d_model) < 1:
            errors.append(("reduction", f"{self.reduction} is more than d_model {d_model}"))
        named = [("active", self.active), *((f"tags.{tag}", i) for tag, i in self.tags.items())]
        for field, name in named:
            if name is not None and name not in self.ids:
                message = f"no adapter {name}{nearest(name, self.ids)}; ids has "
                errors.append((field, message + ", ".join(self.ids)))
        return errors


class AdapterFields(StackFields):
    """Adapters of a model."""

    adapters: AdaptersConfig | None = Field(
        default=None, description="Adapters after the layers; null: none."
    )

    def has_adapters(self, stack: Stack) -> bool:
        """Return whether the layers of `stack` have adapters."""
        return self.adapters is not None and self.adapters.stacks in (stack, "both")

    def adapter_errors(self) -> list[tuple[str, str]]:
        """Return incompatible settings as (field, message) pairs."""
        if self.adapters is None:
            return []
        return [(f"adapters.{f}", message) for f, message in self.adapters.errors(self.d_model)]

    def adapter_params(self, stack: Stack, norm_params: int) -> int:
        """Return the number of parameters of all adapters of one layer of `stack`.

        Args:
            stack: name of the stack.
            norm_params: number of parameters of a norm.
        """
        if self.adapters is None or not self.has_adapters(stack):
            return 0
        return len(self.adapters.ids) * self.adapters.num_params(self.d_model, norm_params)

    def active_adapter_params(self, stack: Stack, norm_params: int) -> int:
        """Return the parameters of one layer that a token passes through, of its one adapter."""
        if self.adapters is None or not self.adapters.used:
            return 0
        return self.adapter_params(stack, norm_params) // len(self.adapters.ids)
