"""What the arguments of fairseq's language models with Transformer layers say about a model.

A language model is a decoder without encoder. Its arguments are read as those of a Transformer
whose encoder is like its decoder, of which the decoder is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ds_seq.compat.fairseq.adaptive import adaptive_section
from ds_seq.compat.fairseq.command import Given
from ds_seq.compat.fairseq.convolutions import is_lightconv, tuples_in
from ds_seq.compat.fairseq.flag import changes
from ds_seq.compat.fairseq.model import model_section
from ds_seq.compat.fairseq.refusals import Refusals
from ds_seq.compat.fairseq.text_flags import TEXT_FLAGS
from ds_seq.names import Stack

TRANSFORMER_LM, LIGHTCONV_LM = "transformer_lm", "lightconv_lm"
"""How the names of the architectures begin."""
LM_TASK = "language_modeling"

_ALIKE = (
    *("embed_dim", "ffn_embed_dim", "layers", "attention_heads", "normalize_before"),
    *("learned_pos", "layerdrop"),
)
_ALIKE_CONVOLUTIONS = ("conv_type", "conv_dim", "kernel_size_list", "glu")
"""Arguments of either stack that a language model has."""
_OF_ENCODER = ("encoder_layers", "encoder_repeats", "encoder_mixer")


def language_model_section(
    given: Given, arguments: Mapping[str, Any], refusals: Refusals
) -> dict[str, Any]:
    """Return the section `model` of a language model.

    Args:
        given: the arguments that are known.
        arguments: all arguments, by their names with underscores.
        refusals: gets what no model of ds_seq has.
    """
    width = given["decoder_embed_dim"]
    for flag in TEXT_FLAGS:
        value = arguments.get(flag.dest)
        if flag.fate == "refused" and changes(flag, value):
            refusals.add(f"{flag.names[0]} {value}: {flag.note}")
    for dest in ("decoder_input_dim", "decoder_output_dim"):
        if arguments.get(dest) not in (None, width):
            name = f"--{dest.replace('_', '-')} {arguments[dest]}"
            refusals.add(f"{name}: must be --decoder-embed-dim {width}; there is no map between")
    section = model_section(_with_encoder(given, positions(arguments)), refusals)
    tied = bool(given["share_decoder_input_output_embed"])
    section |= {"name": "decoder_only", "share_embeddings": "all" if tied else "none"}
    section |= adaptive_section(arguments, refusals)
    if arguments.get("character_embeddings"):
        section |= {"share_embeddings": "none", "character_embeddings": _network(given, refusals)}
    if _has_no_final_norm(given, arguments) and section["norm_position"] == "pre":
        section["final_norm"] = False
    return {key: value for key, value in section.items() if key not in _OF_ENCODER}


def _network(given: Given, refusals: Refusals) -> dict[str, Any]:
    """Return the network over the bytes of tokens."""
    text, filters = given["character_filters"], list[list[int]]()
    try:
        filters = tuples_in(text)
    except ValueError:
        refusals.add(f"--character-filters {text}: should be a list of pairs, as [(1, 64)]")
    return {
        "filters": filters,
        "embedding_dim": given["character_embedding_dim"],
        "highway_layers": given["char_embedder_highway_layers"],
        "max_bytes": _MOST_BYTES,
    }


def _has_no_final_norm(given: Given, arguments: Mapping[str, Any]) -> bool:
    """Return whether no norm follows the last layer."""
    if is_lightconv(given) or "no_tie_adaptive_proj" in arguments:  # as before fairseq 0.9
        return True
    if arguments.get("decoder_final_norm") is not None:
        return not arguments["decoder_final_norm"]
    return bool(arguments.get("no_decoder_final_norm"))


def _with_encoder(given: Given, length: int) -> Given:
    """Return arguments in which the encoder is like the decoder, and as long as the text."""
    values = {**given.values, "no_decoder_final_norm": False}  # a field of its own
    if is_lightconv(given):
        values |= {f"encoder_{name}": given[f"decoder_{name}"] for name in _ALIKE_CONVOLUTIONS}
    return both_alike(replace(given, values=values), "decoder", length)


def both_alike(given: Given, stack: Stack, length: int) -> Given:
    """Return arguments in which both stacks are like one of them.

    Args:
        given: the arguments.
        stack: the one that is described.
        length: number of positions of both.
    """
    values = dict(given.values)
    for name in _ALIKE:
        values[f"decoder_{name}"] = values[f"encoder_{name}"] = given[f"{stack}_{name}"]
    values["max_source_positions"] = values["max_target_positions"] = length
    return replace(given, values=values)


def positions(arguments: Mapping[str, Any]) -> int:
    """Return the number of positions of a model: by default, the longest text of its training."""
    given = arguments.get("max_target_positions") or arguments.get("tokens_per_sample")
    return int(given or _TOKENS_PER_SAMPLE)


_TOKENS_PER_SAMPLE, _MOST_BYTES = 1024, 50
