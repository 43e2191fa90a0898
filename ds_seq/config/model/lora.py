"""Low-rank changes of the maps of attention and feed-forwards (LoRA)."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from ds_seq.config.base import Config, Probability
from ds_seq.config.model.stack import StackFields, Width
from ds_seq.names import LoraModule, Placement, Stack


class LoraConfig(Config):
    """Changes of low rank that are trained instead of the maps themselves (Hu et al. 2021)."""

    rank: Width = Field(default=8, description="Rank of the change of each map.")
    alpha: float = Field(
        default=16.0, gt=0.0, le=1e6, description="Numerator of the factor of the changes."
    )
    rank_stabilized: bool = Field(
        default=False,
        description="Divide `alpha` by the square root of `rank`, not by `rank` (rsLoRA).",
    )
    dropout: Probability = Field(
        default=0.0, description="Dropout on the input of the changes; not in experts."
    )
    modules: list[LoraModule] = Field(
        default=["query", "value"],
        min_length=1,
        description="Maps that are changed: `query`, `key`, `value` and `output` of all "
        "attentions and retentions, `value` and `output` also of convolutions, `up` "
        "and `down` of the dense feed-forwards, and both maps of "
        "`experts`, each of which has a change of its own.",
    )
    stacks: Placement = Field(default="both", description="Stacks whose maps are changed.")


class LoraFields(StackFields):
    """Low-rank changes of a model."""

    lora: LoraConfig | None = Field(
        default=None, description="Low-rank changes of maps of the layers; null: none."
    )

    def lora_of(self, stack: Stack) -> LoraConfig | None:
        """Return the section if it changes maps of `stack`."""
        is_changed = self.lora is not None and self.lora.stacks in (stack, "both")
        return self.lora if is_changed else None

    def lora_errors(self, is_float: bool, has_experts: bool) -> list[tuple[str, str]]:
        """Return incompatible settings as (field, message) pairs.

        Args:
            is_float: whether the weights of the maps are not rounded.
            has_experts: whether the model has experts.
        """
        if self.lora is None:
            return []
        errors = []
        if not is_float:
            errors.append(("lora", "cannot change weights that are rounded (linear: bitnet)"))
        if len(set(self.lora.modules)) < len(self.lora.modules):
            errors.append(("lora.modules", f"has one twice: {', '.join(self.lora.modules)}"))
        if "experts" in self.lora.modules and not has_experts:
            errors.append(("lora.modules", "experts, but model.moe is null"))
        return errors

    def mixer_lora_params(self, stack: Stack, widths: Mapping[LoraModule, int]) -> int:
        """Return the parameters of the changes of one attention or retention.

        Args:
            stack: name of the stack.
            widths: width of each map on the side that is not the model's.
        """
        lora = self.lora_of(stack)
        if lora is None:
            return 0
        changed = [width for name, width in widths.items() if name in lora.modules]
        return lora.rank * sum(self.d_model + width for width in changed)

    def ffn_lora_params(self, stack: Stack, inner: int, parts: int, is_expert: bool) -> int:
        """Return the parameters of the changes of one feed-forward or expert.

        Args:
            stack: name of the stack.
            inner: its inner width.
            parts: number of parts of its first map.
            is_expert: whether it is an expert.
        """
        lora = self.lora_of(stack)
        if lora is None:
            return 0
        up, down = (("experts",) * 2) if is_expert else ("up", "down")
        one = lora.rank * (self.d_model + inner)
        return (parts * one if up in lora.modules else 0) + (one if down in lora.modules else 0)
