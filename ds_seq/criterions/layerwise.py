"""Layer-wise distillation: a student's layers imitate chosen layers of its teacher.

Losses are sums over real tokens, in fp32 for models of any precision. A batch without sentences
still has one row, none of whose tokens count: its loss is 0 and has a gradient.

Shapes: B batch, S source length, T target length, L source or target length, K keys, D
model, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ds_seq.data.batch import Batch, Seq2SeqInputs
from ds_seq.models.layer_maps import LAYER_MAPS
from ds_seq.models.output import LayerOutputs
from ds_seq.names import AttentionKind, LayerMatch, Stack

_Pair = tuple[Tensor, Tensor]

# Lower bound of attention weights, so that their logarithm is finite, and so is its gradient times
# any loss scale.
_FLOOR = 1e-24


@dataclass(frozen=True)
class MatchedLayers:
    """Which layer of the teacher each layer of the student imitates.

    Attributes:
        match: name of a layer map, see `ds_seq.models.layer_maps`.
        encoder: a teacher layer, counted from 0, for each encoder layer of the student, instead of
            the layer map; empty to leave out the encoder.
        decoder: the same for the decoder.
    """

    match: LayerMatch
    encoder: Sequence[int] | None
    decoder: Sequence[int] | None

    def of(self, stack: Stack) -> Sequence[int] | None:
        """Return the teacher layers given for `stack`; None to use `match`."""
        return self.encoder if stack == "encoder" else self.decoder


@dataclass(frozen=True)
class HiddenTerm:
    """How `hidden_loss` enters the total.

    Attributes:
        weight: weight of the term; 0 only logs it.
        layers: which layers are compared.
        normalize: whether to normalize every vector to mean 0 and variance 1 first.
    """

    weight: float
    layers: MatchedLayers
    normalize: bool


@dataclass(frozen=True)
class AttentionTerm:
    """How `attention_loss` enters the total.

    Attributes:
        weight: weight of the term; 0 only logs it.
        layers: which layers are compared.
        kinds: kinds of attention maps to compare.
    """

    weight: float
    layers: MatchedLayers
    kinds: Collection[AttentionKind]


def hidden_loss(
    student: LayerOutputs, teacher: LayerOutputs, batch: Batch[Seq2SeqInputs], term: HiddenTerm
) -> Tensor:
    """Compute the squared error between hidden states (FitNets, arXiv:1412.6550).

    The loss sums the mean over D of `(s - t) ** 2` over matched layers, including the last ones,
    and real tokens (source tokens for the encoder, target tokens for the decoder). With
    `term.normalize`, every vector is first normalized to mean 0 and variance 1.

    Args:
        student: layer outputs of the student, which receive the gradient.
        teacher: layer outputs of a teacher of the same width; receive no gradient.
        batch: batch that both models have read.
        term: layers to compare, and whether to normalize.

    Returns:
        () float32 sum.

    Raises:
        ValueError: the student is deeper than the teacher, and no layers are given.
    """

    def distance(student_states: Tensor, teacher_states: Tensor, real: Tensor) -> Tensor:
        student_states, teacher_states = student_states.float(), teacher_states.float()
        if term.normalize:
            width = student_states.shape[-1:]
            student_states = F.layer_norm(student_states, width)
            teacher_states = F.layer_norm(teacher_states, width)
        difference = (student_states - teacher_states).masked_fill(
            ~real[..., None], 0.0
        )  # (B, L, D)
        return difference.square().sum() / student_states.shape[-1]

    source, target = _real_tokens(batch)
    encoder = _matched(term.layers, "encoder", student.encoder, teacher.encoder)
    decoder = _matched(term.layers, "decoder", student.decoder, teacher.decoder)
    return _sum(distance, encoder, source) + _sum(distance, decoder, target)


def attention_loss(
    student: LayerOutputs,
    teacher: LayerOutputs,
    batch: Batch[Seq2SeqInputs],
    term: AttentionTerm,
) -> Tensor:
    """Compute the divergence between attention maps (as in MiniLM, arXiv:2002.10957).

    The loss sums the mean over heads of `KL(teacher || student)` between distributions over keys,
    over kinds of attention, matched layers and real queries. If the models have different numbers
    of heads, their maps are first averaged over heads.

    Args:
        student: layer outputs of the student, whose maps receive the gradient.
        teacher: layer outputs of the teacher; receive no gradient.
        batch: batch that both models have read.
        term: kinds of attention and layers to compare.

    Returns:
        () float32 sum.

    Raises:
        ValueError: the student is deeper than the teacher, and no layers are given.
    """
    source, target = _real_tokens(batch)
    by_kind: dict[str, tuple[Stack, Sequence[Tensor], Sequence[Tensor], Tensor]] = {
        "encoder": ("encoder", student.encoder_attention, teacher.encoder_attention, source),
        "decoder": ("decoder", student.decoder_attention, teacher.decoder_attention, target),
        "cross": ("decoder", student.cross_attention, teacher.cross_attention, target),
    }
    total = torch.zeros((), device=target.device)
    for kind, (stack, student_maps, teacher_maps, real) in by_kind.items():
        if kind in term.kinds:
            pairs = _matched(term.layers, stack, student_maps, teacher_maps)
            total = total + _sum(_divergence, pairs, real)
    return total


def _divergence(student: Tensor, teacher: Tensor, real: Tensor) -> Tensor:
    """Return the divergence of the maps (B, H, L, K) of one layer; masked keys are 0 in both."""
    student, teacher = student.float(), teacher.float()
    if student.shape[1] != teacher.shape[1]:
        student, teacher = (x.mean(dim=1, keepdim=True) for x in (student, teacher))
    ratio = teacher.clamp(min=_FLOOR).log() - student.clamp(min=_FLOOR).log()
    by_query = (teacher * ratio).sum(dim=-1).mean(dim=1)  # (B, L)
    return by_query.masked_fill(~real, 0.0).sum()


def _matched(
    layers: MatchedLayers,
    stack: Stack,
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
) -> Iterator[_Pair]:
    """Iterate over the student's and the teacher's tensors of each pair of matched layers."""
    chosen = layers.of(stack)
    if chosen is None:
        chosen = LAYER_MAPS[layers.match](len(teacher), len(student))
    elif not chosen:  # the stack is left out
        return
    for student_tensor, layer in zip(student, chosen, strict=True):
        yield student_tensor, teacher[layer].detach()


def _sum(
    distance: Callable[[Tensor, Tensor, Tensor], Tensor], pairs: Iterator[_Pair], real: Tensor
) -> Tensor:
    total = torch.zeros((), device=real.device)
    for student, teacher in pairs:
        total = total + distance(student, teacher, real)
    return total


def _real_tokens(batch: Batch[Seq2SeqInputs]) -> tuple[Tensor, Tensor]:
    """Return (B, S) and (B, T), True at tokens that count.

    In a batch without sentences no token counts, not even the end symbol that is its source.
    """
    source = batch.inputs.source_mask
    return source if batch.num_tokens else torch.zeros_like(source), batch.mask
