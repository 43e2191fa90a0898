"""Trained models of which only some layers are loaded.

A model that was trained with `model.layer_drop` can be used with fewer layers without further
training (Fan et al., 2020, "Reducing Transformer Depth on Demand with Structured Dropout",
https://arxiv.org/abs/1909.11556).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ds_seq.config.fewer_layers import CopiedLayers, fewer_layers, model_with
from ds_seq.config.model import ModelConfig, TransformerConfig
from ds_seq.errors import UserError
from ds_seq.names import STACKS, Stack
from ds_seq.runs.card import StoredRun
from ds_seq.weights.fewer_layers import FewerLayers

KeptLayers = Mapping[Stack, Sequence[int]]
"""Indices (from 0) of the layers to use; all layers of a stack that is not named."""


def keep_layers(stored: StoredRun, kept: KeptLayers) -> StoredRun:
    """Return a model with some of its layers.

    Args:
        stored: the whole model.
        kept: the layers to use.

    Raises:
        UserError: the model does not have these layers, or its layers cannot be chosen.
    """
    model = stored.model_config
    if not isinstance(model, TransformerConfig) or len(model.stacks) == 1:
        raise UserError(
            f"model.name {stored.model_config.name}: the layers of {stored.source} cannot be "
            "chosen; only those of a Transformer of ds_seq can"
        )
    stored.require_full_precision()
    layers = CopiedLayers(*(_of_stack(model, stack, kept) for stack in STACKS))
    experiment = stored.experiment
    if experiment is not None:
        experiment = fewer_layers(experiment, layers)
    return replace(
        stored,
        model_config=model_with(model, layers),
        weights=FewerLayers(stored.weights, {stack: layers.of(stack) for stack in STACKS}),
        experiment=experiment,
    )


def _of_stack(model: ModelConfig, stack: Stack, kept: KeptLayers) -> list[int]:
    depth = model.layers_of(stack)
    layers = [*kept.get(stack, range(depth))]
    for layer in layers:
        if not 0 <= layer < depth:
            raise UserError(
                f"--{stack}-layers-to-keep: there is no layer {layer}; the {stack} has {depth}, "
                f"from 0 to {depth - 1}"
            )
    if not layers or len(set(layers)) < len(layers):
        raise UserError(
            f"--{stack}-layers-to-keep {','.join(map(str, layers))}: name each layer once, at "
            "least one"
        )
    return layers
