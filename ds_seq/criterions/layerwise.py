"""Layer-wise distillation: a student's layers imitate chosen layers of its teacher.

Sums over real tokens, in fp32 whatever the precision of the models. A batch without sentences has a
row all the same, in which nothing counts; its loss is 0 and has a gradient.

Shapes: B batch, S source length, T target length, L either, K keys, D
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

# Smaller attention counts as this, so that its logarithm is finite, and the logarithm's gradient
# too, times any loss scale.
_FLOOR = 1e-24


@dataclass(frozen=True)
class MatchedLayers:
    """Which layer of the teacher each layer of the student imitates.

    Attributes:
        match: name of a table, see `ds_seq.models.layer_maps`.
        encoder: for each encoder layer of the student a teacher layer, from 0, in place of the
            table; empty: the encoder is left out.
        decoder: the same for the decoder.
    """

    match: LayerMatch
    encoder: Sequence[int] | None
    decoder: Sequence[int] | None

    def of(self, stack: Stack) -> Sequence[int] | None:
        """The teacher layers given for `stack`; None leaves them to `match`."""
        return self.encoder if stack == "encoder" else self.decoder


@dataclass(frozen=True)
class HiddenTerm:
    """How `hidden_loss` enters the total.

    Attributes:
        weight: of the term; 0 only logs it.
        layers: which layers are compared.
        normalize: bring every vector to mean 0 and variance 1 first.
    """

    weight: float
    layers: MatchedLayers
    normalize: bool


@dataclass(frozen=True)
class AttentionTerm:
    """How `attention_loss` enters the total.

    Attributes:
        weight: of the term; 0 only logs it.
        layers: which layers are compared.
        kinds: which attention maps.
    """

    weight: float
    layers: MatchedLayers
    kinds: Collection[AttentionKind]


def hidden_loss(
    student: LayerOutputs, teacher: LayerOutputs, batch: Batch[Seq2SeqInputs], term: HiddenTerm
) -> Tensor:
    """Squared error between hidden states (FitNets, arXiv:1412.6550), those of last layers too.

    Sum over matched layers and real tokens (of the source for the encoder, of the target for the
    decoder) of the mean over D of `(s - t) ** 2`. With `term.normalize` every vector is first
    brought to mean 0 and variance 1.

    Args:
        student: its hidden states take the gradient.
        teacher: as wide as the student; takes none.
        batch: what both have read.
        term: which layers, and how.

    Returns:
        () float32, a sum.

    Raises:
        ValueError: the student is deeper than the teacher, and no layers are named.
    """

    def distance(own: Tensor, other: Tensor, real: Tensor) -> Tensor:
        own, other = own.float(), other.float()
        if term.normalize:
            own, other = (F.layer_norm(x, x.shape[-1:]) for x in (own, other))
        difference = (own - other).masked_fill(~real[..., None], 0.0)  # (B, L, D)
        return difference.square().sum() / own.shape[-1]

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
    """Divergence between attention maps (as in MiniLM, arXiv:2002.10957).

    Sum over kinds of attention, matched layers and real queries of the mean over heads of
    `KL(teacher || student)` over the keys. Where the models have unequal numbers of heads, their
    maps are first averaged over heads.

    Args:
        student: its maps take the gradient.
        teacher: takes none.
        batch: what both have read.
        term: which kinds and layers.

    Returns:
        () float32, a sum.

    Raises:
        ValueError: the student is deeper than the teacher, and no layers are named.
    """
    source, target = _real_tokens(batch)
    by_kind: dict[str, tuple[Stack, Sequence[Tensor], Sequence[Tensor], Tensor]] = {
        "encoder": ("encoder", student.encoder_attention, teacher.encoder_attention, source),
        "decoder": ("decoder", student.decoder_attention, teacher.decoder_attention, target),
        "cross": ("decoder", student.cross_attention, teacher.cross_attention, target),
    }
    total = torch.zeros((), device=target.device)
    for kind, (stack, own, other, real) in by_kind.items():
        if kind in term.kinds:
            total = total + _sum(_divergence, _matched(term.layers, stack, own, other), real)
    return total


def _divergence(own: Tensor, other: Tensor, real: Tensor) -> Tensor:
    """Of the maps (B, H, L, K) of one layer; what no query may see is 0 in both."""
    own, other = own.float(), other.float()
    if own.shape[1] != other.shape[1]:
        own, other = (x.mean(dim=1, keepdim=True) for x in (own, other))
    ratio = other.clamp(min=_FLOOR).log() - own.clamp(min=_FLOOR).log()
    by_query = (other * ratio).sum(dim=-1).mean(dim=1)  # (B, L)
    return by_query.masked_fill(~real, 0.0).sum()


def _matched(
    layers: MatchedLayers,
    stack: Stack,
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
) -> Iterator[_Pair]:
    """Student and teacher tensors of each matched layer."""
    chosen = layers.of(stack)
    if chosen is None:
        chosen = LAYER_MAPS[layers.match](len(teacher), len(student))
    elif not chosen:  # the stack is left out
        return
    for own, layer in zip(student, chosen, strict=True):
        yield own, teacher[layer].detach()


def _sum(
    distance: Callable[[Tensor, Tensor, Tensor], Tensor], pairs: Iterator[_Pair], real: Tensor
) -> Tensor:
    total = torch.zeros((), device=real.device)
    for own, other in pairs:
        total = total + distance(own, other, real)
    return total


def _real_tokens(batch: Batch[Seq2SeqInputs]) -> tuple[Tensor, Tensor]:
    """(B, S) and (B, T), True where a token counts: nowhere in a batch without sentences, though
    its source is an end symbol."""
    source = batch.inputs.source_mask
    return source if batch.num_tokens else torch.zeros_like(source), batch.mask
