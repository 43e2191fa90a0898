"""The experiment of a model that keeps only some of its layers.

Nothing in a model depends on the position of a layer in its stack, except the config, which lists
the layers with experts, their counts, the pruned heads and the sizes of kernels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.model import TransformerConfig
from ds_seq.config.model.transformer import TransformerFields
from ds_seq.config.model.union import with_layers
from ds_seq.names import STACKS, Stack


class CopiedLayers(NamedTuple):
    """Indices (from 0) of the layers that are kept, in the order of the new model."""

    encoder: list[int]
    decoder: list[int]

    def of(self, stack: Stack) -> list[int]:
        """Return the indices for one stack."""
        return self.encoder if stack == "encoder" else self.decoder


def fewer_layers(experiment: ExperimentConfig, layers: CopiedLayers) -> ExperimentConfig:
    """Return the experiment of the model with the kept layers only.

    Args:
        experiment: experiment of the whole model.
        layers: the layers that are kept.
    """
    data = experiment_fields(experiment, layers)
    return ExperimentConfig.model_validate(data)


def model_with(model: TransformerConfig, layers: CopiedLayers) -> TransformerConfig:
    """Return the config of the model with the kept layers only."""
    fields = model.model_dump(mode="json") | _model_fields(model, layers)
    return TransformerConfig.model_validate(fields)


def experiment_fields(experiment: ExperimentConfig, layers: CopiedLayers) -> dict[str, Any]:
    """Return the values of `fewer_layers`, to be changed further.

    Raises:
        UserError: the model is not made of Transformer layers.
    """
    data = experiment.model_dump(mode="json")
    data["model"] |= _model_fields(with_layers(experiment.model), layers)
    without_experts(data)
    key, _ = experiment.base_criterion
    criterion = data
    for name in key.split("."):
        criterion = criterion[name]
    _follow_layers(criterion, layers)
    return data


def without_experts(data: dict[str, Any]) -> None:
    """Drop what only experts have from an experiment whose model has none; changes `data`."""
    if data["model"]["moe"] is None:
        data["train"] |= {"expert_parallel": 1, "sparse_clip": False}


def _model_fields(model: TransformerFields, layers: CopiedLayers) -> dict[str, Any]:
    """Return the fields of a model that depend on its layers."""
    fields: dict[str, Any] = {f"{stack}_layers": len(layers.of(stack)) for stack in model.stacks}
    fields["moe"] = _moe_section(model, layers)
    for stack in model.stacks:
        convolution = model.convolution_of(stack)
        if convolution is not None:
            sizes = convolution.sizes(model.layers_of(stack))
            kept = [sizes[layer] for layer in layers.of(stack)]
            section = convolution.model_copy(update={"kernel_sizes": kept})
            fields[f"{stack}_mixer"] = section.model_dump(mode="json")
    if model.pruned_heads is not None:
        pruned = model.pruned_heads.model_dump(mode="json")
        for attention, lists in pruned.items():
            kept = layers.of("encoder" if attention == "encoder" else "decoder")
            pruned[attention] = [lists[layer] for layer in kept] if lists else []
        fields["pruned_heads"] = pruned
    return fields


def _moe_section(model: TransformerFields, layers: CopiedLayers) -> dict[str, Any] | None:
    """Return `model.moe` with the new positions of layers with experts; None if none are left."""
    if model.moe is None:
        return None
    places: dict[str, list[int]] = {}
    counts = []
    for stack in model.stacks:
        experts = [model.experts_in(stack, layer) for layer in layers.of(stack)]
        places[stack] = [index for index, count in enumerate(experts) if count]
        counts += [count for count in experts if count]
    if not counts:
        return None
    num_experts = counts if len(set(counts)) > 1 else counts[0]
    return {**model.moe.model_dump(mode="json"), "layers": places, "num_experts": num_experts}


def _follow_layers(criterion: dict[str, Any], layers: CopiedLayers) -> None:
    """Let the kept layers imitate the same layers of a teacher as before."""
    for name in ("hidden", "attention"):
        section = criterion.get(name) or {}
        for stack in STACKS:
            if section.get(stack):
                section[stack] = [section[stack][layer] for layer in layers.of(stack)]
