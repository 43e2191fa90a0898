"""Learned projections, which let a student imitate hidden states of another width.

Jiao et al., 2020, "TinyBERT: Distilling BERT for Natural Language Understanding",
https://arxiv.org/abs/1909.10351. One matrix for each stack maps the hidden states of all layers of
the student to the width of the teacher. It is trained with the student, but it is no part of it:
checkpoints hold it to resume from, and whoever reads the student's weights does not see it.

Shapes: B batch, L source or target length, D student width, W teacher width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.models.output import LayerOutputs, ModelOutput
from ds_seq.names import HIDDEN_PROJECTION, TRAINING_ONLY, Stack


class HiddenProjection(nn.Module):
    """Maps the hidden states of a student to the width of its teacher.

    Between equal widths a map starts as the identity; otherwise it has orthonormal rows or columns,
    the same ones on every rank.

    Args:
        student_width: D.
        teacher_width: W.
        stacks: stacks whose hidden states are compared.
        seed: seed of the initial values.
    """

    def __init__(
        self, student_width: int, teacher_width: int, stacks: Sequence[Stack], seed: int
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.maps = nn.ModuleDict()
        for stack in stacks:
            linear = nn.Linear(student_width, teacher_width, bias=False)
            if student_width == teacher_width:
                nn.init.eye_(linear.weight)
            else:
                nn.init.orthogonal_(linear.weight, generator=generator)
            self.maps[stack] = linear

    def forward(self, layers: LayerOutputs) -> LayerOutputs:
        """Return the same outputs with hidden states (B, L, W) in place of (B, L, D)."""
        return layers._replace(
            encoder=self._mapped("encoder", layers.encoder),
            decoder=self._mapped("decoder", layers.decoder),
        )

    def _mapped(self, stack: Stack, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if stack not in self.maps:
            return states
        return tuple(self.maps[stack](state) for state in states)


def attach_projection(model: nn.Module, projection: HiddenProjection) -> None:
    """Let a student return projected hidden states whenever its layers are captured.

    The projection becomes a submodule of the model, so that ZeRO partitions it, the optimizer
    trains it, and checkpoints hold it like any other weight.

    Args:
        model: the student, before DeepSpeed wraps it; it returns a `ModelOutput`.
        projection: the projection.
    """
    model.add_module(HIDDEN_PROJECTION, projection)

    def project(_: nn.Module, inputs: object, output: ModelOutput) -> ModelOutput:
        if output.layers is None:
            return output
        return output._replace(layers=projection(output.layers))

    model.register_forward_hook(project)


def build_projection(
    config: ExperimentConfig, teacher_width: int | None
) -> HiddenProjection | None:
    """Build the projection of an experiment; None if its criterion learns none.

    Args:
        config: experiment of the student.
        teacher_width: W; None: the teacher returns no hidden states.
    """
    hidden = None if config.distillation is None else config.distillation.hidden
    if hidden is None or hidden.projection == "none":
        return None
    stacks = [stack for stack in config.model.stacks if hidden.layers_of(stack) != []]
    width = config.model.state_width
    # both were checked with the experiment and the teacher
    assert width is not None and teacher_width is not None
    return HiddenProjection(width, teacher_width, stacks, config.train.seed)


def without_projection(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Iterate over the parameters of a model by name, without those that only training has."""
    for name, parameter in model.named_parameters():
        if name.partition(".")[0] not in TRAINING_ONLY:
            yield name, parameter
