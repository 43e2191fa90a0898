"""What language models have in common, whatever their layers: both ends, and no source.

Shapes: B texts, S source length, N scored rows, D width of the states, V vocabulary.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ds_seq.data.text_batch import TextInputs
from ds_seq.models.output import EncoderOutput, LayerOutputs, ModelOutput
from ds_seq.modules.embedding import token_scores


def no_source(
    embedding: nn.Module, source: Tensor, source_mask: Tensor, adapters: Any = None
) -> EncoderOutput:
    """Return what stands for the encoded source in a search: nothing, for B texts.

    Args:
        embedding: embedding of the tokens, from which a cache takes dtype and device.
        source: (B, S); only B matters.
        source_mask: (B, S).
        adapters: see `ds_seq.modules.body.Context.adapters`.
    """
    return EncoderOutput(
        embedding(source[:, :1]), source_mask[:, :1], None, {}, [], adapters=adapters
    )


def is_adaptive(output: nn.Module | None) -> bool:
    """Return whether the projection to the vocabulary is an adaptive softmax."""
    return output is not None and not isinstance(output, nn.Linear)


def scores_of(
    hidden: Tensor, embedding: nn.Module, output: nn.Module | None, labels: Tensor | None = None
) -> Tensor:
    """Score states against the vocabulary.

    Args:
        hidden: (N, D).
        embedding: embedding of the tokens, which scores if the output is tied to it.
        output: projection, or adaptive softmax; None if tied.
        labels: (N,) correct tokens, of which alone an adaptive softmax returns the scores.

    Returns:
        (N, V), of adaptive softmax log-probabilities; or (N,) of labels.
    """
    if output is None or not is_adaptive(output):
        return token_scores(hidden, embedding, output)
    log_probs: Tensor = output(hidden, embedding, labels)
    return log_probs


def text_output(
    hidden: Tensor,
    inputs: TextInputs,
    embedding: nn.Module,
    output: nn.Module | None,
    layers: LayerOutputs | None,
) -> ModelOutput:
    """Return the output of a dense model; adaptive softmax scores labels alone if it has them.

    Args:
        hidden: states of the scored rows (N, D).
        inputs: the text.
        embedding: see `scores_of`.
        output: see `scores_of`.
        layers: what was captured.
    """
    if inputs.labels is None or not is_adaptive(output):
        return ModelOutput(scores_of(hidden, embedding, output), {}, [], layers)
    labels = scores_of(hidden, embedding, output, inputs.labels)
    return ModelOutput(labels.new_empty(len(labels), 0), {}, [], layers, labels)
