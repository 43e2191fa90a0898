"""What models read, made of bare tensors, for tests that know the padding by its id."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ds_seq.data.batch import Batch, Padded, Seq2SeqInputs
from ds_seq.data.text_batch import TextInputs
from ds_seq.models.output import EncoderOutput, ModelOutput
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.modules.multiway import Markers
from ds_seq.names import Capture

PAD, EOS = 1, 2


def padded(source: Tensor) -> Padded:
    """Tokens (B, S) with their mask."""
    return Padded(source, source != PAD)


def inputs_of(source: Tensor, target: Tensor, target_mask: Tensor | None = None) -> Seq2SeqInputs:
    """Inputs of source tokens (B, S) and shifted target tokens (B, T).

    All targets but padding are scored, unless `target_mask` (B, T) says which.
    """
    mask = target != PAD if target_mask is None else target_mask
    ids, real = padded(source)
    return Seq2SeqInputs(ids, real, target, mask, int(mask.sum()), int(real.sum()))


def batch_of(source: Tensor, labels: Tensor, indices: Tensor | None = None) -> Batch[Seq2SeqInputs]:
    """The batch of source tokens (B, S) and labels (B, T); the end symbol starts the decoder."""
    mask = labels != PAD
    target = torch.cat([torch.full_like(labels[:, :1], EOS), labels[:, :-1]], dim=1)
    inputs = inputs_of(source, target, mask)
    indices = torch.arange(len(source)) if indices is None else indices
    return Batch(indices, inputs, labels, mask, inputs.num_targets, len(source))


def text_inputs(tokens: Tensor, is_scored: Tensor | None = None) -> TextInputs:
    """Inputs of texts (B, T); all tokens but padding are scored, unless `is_scored` says which."""
    mask = tokens != PAD
    scored = mask if is_scored is None else is_scored
    return TextInputs(tokens, mask, scored, int(scored.sum()), int(mask.sum()))


def text_batch_of(batch: Batch[Seq2SeqInputs]) -> Batch[TextInputs]:
    """The targets of a batch of pairs as texts."""
    target, mask = batch.inputs.target, batch.inputs.target_mask
    real = mask if batch.num_tokens else ~mask  # an empty batch has a text of one token, see there
    inputs = TextInputs(target, real, mask, batch.num_tokens, int(real.sum()))
    return replace(batch, inputs=inputs)  # type: ignore[arg-type, return-value]


def score(
    model: nn.Module,
    source: Tensor,
    target: Tensor,
    capture: Capture = "none",
    target_mask: Tensor | None = None,
) -> ModelOutput:
    """A model's output for `inputs_of` the same, with logits (B, T, V): 0 where none was scored."""
    inputs = inputs_of(source, target, target_mask)
    output: ModelOutput = model(inputs, capture)
    assert len(output.logits) == inputs.num_targets
    logits = output.logits.new_zeros(*target.shape, output.logits.size(-1))
    logits[inputs.target_mask] = output.logits
    return output._replace(logits=logits)


def encode(model: Any, source: Tensor, capture: Capture = "none") -> EncoderOutput:
    """Source tokens (B, S), encoded."""
    encoded: EncoderOutput = model.encode(*padded(source), capture)
    return encoded


def mark_every_third(model: nn.Module) -> None:
    """Let every third token of a model with two sets of parameters choose one of them."""
    markers = model.markers if isinstance(model, Seq2SeqTransformer) else None
    if isinstance(markers, Markers):
        markers.mark({token: token // 3 % 2 for token in range(4, len(markers.sets), 3)})
