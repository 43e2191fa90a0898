"""What the arguments of RoBERTa say: an encoder that predicts hidden tokens.

They are read as those of a Transformer whose decoder is like its encoder, which is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ds_seq.compat.fairseq.architectures import ROBERTAS
from ds_seq.compat.fairseq.command import Given
from ds_seq.compat.fairseq.language_models import both_alike
from ds_seq.compat.fairseq.model import model_section
from ds_seq.compat.fairseq.refusals import Refusals

_MASKED = "masked_language_modeling"
WITH_MASK: Mapping[str, Any] = {
    "added_symbols": ["<mask>"],
    "source_opening": "<s>",
    "target_opening": "<s>",
}
"""Options of a vocabulary with a symbol for what is masked, whose texts have a start symbol."""
SHARES: Mapping[str, str] = {
    "mask_prob": "predicted",
    "random_token_prob": "random_tokens",
    "leave_unmasked_prob": "kept_tokens",
}
"""Arguments of the task `masked_lm`, and the options of ours that they become."""
_OF_DECODER = ("decoder_layers", "decoder_repeats", "decoder_mixer")


def is_masked_model(given: Given) -> bool:
    """Return whether the arguments are those of a masked language model."""
    return given["arch"] in ROBERTAS


def masked_model_section(
    given: Given, arguments: Mapping[str, Any], refusals: Refusals
) -> dict[str, Any]:
    """Return the section `model` of a masked language model.

    Args:
        given: the arguments that are known.
        arguments: all arguments, by their names with underscores.
        refusals: gets what no model of ds_seq has.
    """
    tied = not arguments.get("untie_weights_roberta")
    given = replace(given, values={**given.values, "share_all_embeddings": tied})
    section = model_section(both_alike(given, "encoder", masked_positions(arguments)), refusals)
    section |= {"name": "encoder_only", "lm_head": "dense", "output_bias": True}
    return {key: value for key, value in section.items() if key not in _OF_DECODER}


def masked_positions(arguments: Mapping[str, Any]) -> int:
    """Return the number of positions: by default, the longest text of the training."""
    return int(arguments.get("max_positions") or arguments.get("tokens_per_sample") or _MOST)


def masking(arguments: Mapping[str, Any], has_pieces: bool) -> dict[str, Any]:
    """Return which tokens the task `masked_lm` hides, as options of `task`.

    Args:
        arguments: all arguments, by their names with underscores.
        has_pieces: whether the vocabulary has pieces of words; without, each token is a word.
    """
    section: dict[str, Any] = {"name": _MASKED}
    if arguments.get("mask_whole_words") and has_pieces:
        section["whole_words"] = True
    given = ((key, arguments.get(theirs)) for theirs, key in SHARES.items())
    return section | {key: value for key, value in given if value is not None}


_MOST = 1024
