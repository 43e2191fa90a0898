"""What the flags of fairseq's LSTM models say about a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ds_seq.compat.fairseq.adaptive import adaptive_softmax
from ds_seq.compat.fairseq.command import Given
from ds_seq.compat.fairseq.refusals import Refusals
from ds_seq.names import STACKS

LSTM, LSTM_LM = "lstm", "lstm_lm"
"""How the names of these architectures begin, and that of a language model."""

NUMBERS = {
    "encoder_embed_dim": "encoder_embedding_dim",
    "decoder_embed_dim": "decoder_embedding_dim",
    "encoder_hidden_size": "encoder_hidden_dim",
    "decoder_hidden_size": "decoder_hidden_dim",
    "decoder_out_embed_dim": "output_dim",
    "encoder_layers": "encoder_layers",
    "decoder_layers": "decoder_layers",
    "dropout": "dropout",
    "encoder_dropout_in": "encoder_dropout_in",
    "encoder_dropout_out": "encoder_dropout_out",
    "decoder_dropout_in": "decoder_dropout_in",
    "decoder_dropout_out": "decoder_dropout_out",
}
"""Arguments of fairseq and fields of the section."""

LM_NUMBERS = {theirs: ours for theirs, ours in NUMBERS.items() if not theirs.startswith("encoder_")}
"""Those of a language model."""

FLAGS = (
    *("encoder_bidirectional", "decoder_out_embed_dim", "decoder_attention"),
    *(f"{stack}_{part}" for stack in STACKS for part in ("hidden_size", "dropout_in")),
    *(f"{stack}_dropout_out" for stack in STACKS),
)
"""Flags that only those architectures have here."""

_TRUE, _FALSE = ("1", "true"), ("0", "false")


def is_lstm(given: Given) -> bool:
    """Return whether the model has LSTM layers."""
    return str(given["arch"] or "").startswith(LSTM)


def refuse_lstm_flags(given: Given, refusals: Refusals) -> None:
    """Refuse flags that belong to an LSTM model only, for a model that is none."""
    for dest in (each for each in FLAGS if given.typed(each)):
        refusals.add(f"{given.name(dest)}: belongs to --arch lstm; leave it out")


def lstm_section(given: Given, refusals: Refusals) -> dict[str, Any]:
    """Return the section `model`.

    Args:
        given: the arguments.
        refusals: gets what no model of ds_seq has.
    """
    values = {ours: given[theirs] for theirs, ours in NUMBERS.items()}
    for stack in STACKS:
        if values[f"{stack}_hidden_dim"] is None:
            values[f"{stack}_hidden_dim"] = values[f"{stack}_embedding_dim"]
    attention = str(given["decoder_attention"]).lower()
    if attention not in _TRUE + _FALSE:
        name = given.name("decoder_attention")
        refusals.add(f"{name} {given['decoder_attention']}: give 1 or 0")
    sharing = "decoder" if given["share_decoder_input_output_embed"] else "none"
    sharing = "all" if given["share_all_embeddings"] else sharing
    return {
        "name": "recurrent",
        **{name: value for name, value in values.items() if value is not None},
        "bidirectional": bool(given["encoder_bidirectional"]),
        "attention": attention in _TRUE,
        "share_embeddings": sharing,
        "output_bias": sharing == "none",
        "max_positions": max(given["max_source_positions"], given["max_target_positions"]),
    }


def lstm_lm_section(
    arguments: Mapping[str, Any], numbers: Mapping[str, Any], max_positions: int
) -> dict[str, Any]:
    """Return the section `model` of an LSTM language model.

    Args:
        arguments: the arguments, by their names with underscores.
        numbers: fields of the section that are numbers.
        max_positions: longest text, in tokens.
    """
    tied = bool(arguments.get("share_decoder_input_output_embed"))
    dropout = numbers.get("decoder_dropout_out", numbers.get("dropout"))
    adaptive = adaptive_softmax(arguments, dropout)
    return {
        "name": "recurrent_lm",
        **numbers,
        "share_embeddings": "all" if tied and adaptive is None else "none",
        "output_bias": not tied and adaptive is None,
        "max_positions": max_positions,
        **({} if adaptive is None else {"adaptive": adaptive}),
    }
