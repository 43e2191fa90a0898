"""Build a student from some layers of its teacher: its experiment and its weights.

Layers keep their experts, routers and branches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import nn

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.fewer_layers import CopiedLayers, experiment_fields, without_experts
from ds_seq.config.model import ModelConfig
from ds_seq.config.model.union import with_layers
from ds_seq.errors import UserError
from ds_seq.models import build_model
from ds_seq.models.decoder_only import DecoderOnlyTransformer
from ds_seq.models.encoder_only import EncoderOnlyTransformer
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.modules.feed_forward import FeedForward
from ds_seq.names import LAYER_NAME, Stack
from ds_seq.text.tokenizer import VocabSizes
from ds_seq.weights.fill import model_tensors

_WITH_LAYERS = (Seq2SeqTransformer, DecoderOnlyTransformer, EncoderOnlyTransformer)


def student_config(
    teacher: ExperimentConfig, layers: CopiedLayers, dense: bool = False
) -> ExperimentConfig:
    """Return the experiment of a student: the teacher's, with a smaller model.

    Args:
        teacher: experiment of the teacher.
        layers: the teacher's layers to copy.
        dense: whether layers with experts become dense.

    Raises:
        UserError: the dense layers would have two different widths.
    """
    if dense and teacher.model.lora is not None:
        raise UserError(
            "model.lora: experts are merged without low-rank changes; merge those first: ds-seq "
            "export --merge-lora"
        )
    data = experiment_fields(teacher, layers)
    if dense:
        width = _dense_width(teacher.model, layers)
        data["model"] |= {"moe": None, "ffn_dim": width, "ffn_two_thirds": False}
        without_experts(data)
    return ExperimentConfig.model_validate(data)


def _dense_width(model: ModelConfig, layers: CopiedLayers) -> int:
    """Return the inner width of all feed-forwards of a model in which all layers are dense."""
    assert model.moe is not None
    ffn_dim = model.inner_width(model.ffn_dim)
    sparse = {stack: set(model.moe_layers(stack)) for stack in model.stacks}
    is_merged = {layer in sparse[stack] for stack in model.stacks for layer in layers.of(stack)}
    expert = model.moe.ffn_dim or model.ffn_dim
    merged = model.inner_width(expert)
    if model.moe.shared_experts:  # one feed-forward of their total width
        merged += model.inner_width(model.moe.shared_experts * expert)
    if is_merged == {True, False} and merged != ffn_dim:
        places = ", ".join(f"{stack} {sorted(sparse[stack])}" for stack in model.stacks)
        raise UserError(
            f"model.moe: merged, a layer with experts becomes {merged} wide, the others are "
            f"{ffn_dim} (model.ffn_dim); keep the experts, or make a student of the layers with "
            f"experts only ({places}) or of the others only: ds-seq make-student"
        )
    return merged if True in is_merged else ffn_dim


@torch.no_grad()
def make_student(
    teacher: nn.Module,
    config: ExperimentConfig,
    vocab: VocabSizes | int,
    layers: CopiedLayers,
    merged: Mapping[str, FeedForward] | None = None,
) -> nn.Module:
    """Build a student by copying layers of its teacher, and everything outside the layers.

    Args:
        teacher: a model of this package; it is not changed.
        config: experiment of the student, see `student_config`.
        vocab: number of ids of source and target, or of both.
        layers: the layers for which `config` was made.
        merged: replacements for layers with experts, by the layer's name in the teacher.

    Returns:
        The student in evaluation mode, in float32 on the CPU.

    Raises:
        UserError: the teacher is an external model, or `config` has other tensors.
    """
    if not isinstance(teacher, _WITH_LAYERS):
        raise UserError(
            f"model.name {config.model.name}: make-student does not know where the layers of "
            f"{type(teacher).__name__} are; only a Transformer of ds_seq can be shrunk"
        )
    tensors = dict(model_tensors(teacher))
    for name, dense in (merged or {}).items():
        sets = with_layers(config.model).sets_of(cast(Stack, name.split(".")[0]))
        for place in [name] if sets == 1 else [f"{name}.sets.{number}" for number in range(sets)]:
            tensors |= {f"{place}.{part}": value for part, value in dense.named_parameters()}
    student = build_model(config.model, vocab, 1, 0, seed=config.train.seed)
    for name, tensor in model_tensors(student):
        value = tensors.get(_source(name, layers))
        if value is None or value.shape != tensor.shape:
            found = "has none" if value is None else f"has {tuple(value.shape)}"
            raise UserError(
                f"model: the student's {name} is {tuple(tensor.shape)}, its teacher {found}; a "
                "student copies its teacher, so leave out changes of the model's shape"
            )
        tensor.copy_(value)
    return student.requires_grad_(False).eval()


def _source(name: str, layers: CopiedLayers) -> str:
    """Return the teacher's name of a tensor of the student."""
    match = LAYER_NAME.match(name)
    if match is None:
        return name
    stack = cast(Stack, match[1])
    return f"{stack}.layers.{layers.of(stack)[int(match[2])]}.{name[match.end() :]}"
