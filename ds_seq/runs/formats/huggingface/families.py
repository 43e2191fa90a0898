"""Where the tensors of a Hugging Face model are, by its `model_type`.

`ds_seq.config.huggingface` says which model of ds_seq it is; `moe_families` has the names of those
with experts, and `describe` chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Any, NamedTuple

from ds_seq.config.huggingface.facts import OUTPUT_TABLE, SOURCE_TABLE, TARGET_TABLE, Facts
from ds_seq.runs.formats.huggingface.mapping import Names, Part, linear

Settings = Mapping[str, Any]
Section = Mapping[str, Any]


class Named(NamedTuple):
    """The tensors of a model.

    Attributes:
        names: ours, and what they are made of.
        copies: tensors of theirs that are not read -> why.
    """

    names: Names
    copies: Mapping[str, str]


_FIRST_ROW = {"bart": 2, "mbart": 2, "fsmt": 2}
"""First row of learned positions."""
_OF_SIDES = {
    "source_embedding.weight": SOURCE_TABLE,
    "target_embedding.weight": TARGET_TABLE,
    "output.weight": OUTPUT_TABLE,
}


def bart_like(config: Settings, section: Section, facts: Facts, stored: Container[str]) -> Named:
    """Name the tensors of BART and its relatives, whose layers are alike."""
    kind = config["model_type"]
    if kind == "fsmt":
        names = _tables_of_sides(facts, stored)
    else:
        names = {"target_embedding.weight": [Part("model.shared.weight", is_table=True)]}
    if section["output_bias"]:
        names["target_embedding.bias"] = [Part("final_logits_bias", is_table=True)]
    for stack in ("encoder", "decoder"):
        names |= _bart_stack(stack, section, _FIRST_ROW.get(kind, 0))
    shared = "the same as model.shared.weight"
    copies = {
        SOURCE_TABLE: shared,
        TARGET_TABLE: shared,
        OUTPUT_TABLE: "the same as another table",
        "lm_head.weight": shared,
        "model.encoder.embed_positions.weight": "computed",
        "model.decoder.embed_positions.weight": "computed",
        "model.encoder.embed_positions.weights": "computed",
        "model.decoder.embed_positions.weights": "computed",
        "final_logits_bias": "zeros",
    }
    return Named(names, copies)


def _tables_of_sides(facts: Facts, stored: Container[str]) -> Names:
    """Return the names of FSMT's tables; of tied ones, only one is stored."""
    names: Names = {}
    for ours, name in _OF_SIDES.items():
        if ours == "output.weight" and not facts.has_output:
            continue
        # the target's own tables first: that of the source is theirs only if all are one
        places = (name, TARGET_TABLE, OUTPUT_TABLE, SOURCE_TABLE)
        there = next((each for each in places if each in stored), name)
        names[ours] = [Part(there, is_table=True, is_source=ours.startswith("source"))]
    return names


def _bart_stack(stack: str, section: Section, first_row: int) -> Names:
    theirs, names = f"model.{stack}", Names()
    if section["positions"] == "learned":
        table = Part(f"{theirs}.embed_positions.weight", skip=first_row)
        names[f"{stack}.positions.weight"] = [table]
    if section["embedding_norm"]:
        names |= linear(f"{stack}.embedding_norm", f"{theirs}.layernorm_embedding")
    if section["norm_position"] == "pre":
        names |= linear(f"{stack}.final_norm", f"{theirs}.layer_norm")
    for layer in range(section[f"{stack}_layers"]):
        names |= _bart_layer(f"{stack}.layers.{layer}", f"{theirs}.layers.{layer}", stack)
    return names


def _bart_layer(ours: str, theirs: str, stack: str) -> Names:
    own, cross = f"{theirs}.self_attn", f"{theirs}.encoder_attn"
    names = linear(f"{ours}.self_attention.qkv", *(f"{own}.{each}_proj" for each in "qkv"))
    names |= linear(f"{ours}.self_attention.output", f"{own}.out_proj")
    names |= linear(f"{ours}.self_attention_residual.norm", f"{theirs}.self_attn_layer_norm")
    if stack == "decoder":
        names |= linear(f"{ours}.cross_attention.query", f"{cross}.q_proj")
        keys = (f"{cross}.k_proj", f"{cross}.v_proj")
        names |= linear(f"{ours}.cross_attention.key_value", *keys)
        names |= linear(f"{ours}.cross_attention.output", f"{cross}.out_proj")
        names |= linear(
            f"{ours}.cross_attention_residual.norm", f"{theirs}.encoder_attn_layer_norm"
        )
    names |= linear(f"{ours}.feed_forward.up", f"{theirs}.fc1")
    names |= linear(f"{ours}.feed_forward.down", f"{theirs}.fc2")
    return names | linear(f"{ours}.feed_forward_residual.norm", f"{theirs}.final_layer_norm")


def t5(config: Settings, section: Section, facts: Facts, stored: Container[str]) -> Named:
    """Name the tensors of T5 and mT5."""
    scale = config["d_model"] ** -0.5 if _is_scaled(config) else 1.0
    is_gated = str(config.get("feed_forward_proj", "relu")).startswith("gated-")
    names: Names = {"target_embedding.weight": [Part("shared.weight", is_table=True)]}
    if facts.has_output:
        names["output.weight"] = [Part("lm_head.weight", is_table=True)]
    for stack in ("encoder", "decoder"):
        names |= _t5_stack(stack, section[f"{stack}_layers"], is_gated, config["d_kv"] ** 0.5)
    (last,) = names["decoder.final_norm.weight"]
    names["decoder.final_norm.weight"] = [last._replace(times=scale)]
    shared = "the same as shared.weight"
    tables = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
    copies = dict.fromkeys(tables + ([] if facts.has_output else ["lm_head.weight"]), shared)
    unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    return Named(names, {**copies, unused: "not used by transformers either"})


def _is_scaled(config: Settings) -> bool:
    """Return whether the decoder's last states are scaled, as in T5 1.0.

    transformers does so where the table also scores, and says so in configs since version 5.
    """
    if config["model_type"] != "t5":
        return False
    is_tied = config.get("tie_word_embeddings") is not False
    return bool(config.get("scale_decoder_outputs", is_tied))


def _t5_stack(stack: str, depth: int, is_gated: bool, root: float) -> Names:
    first = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    names: Names = {f"{stack}.bias.weight": [Part(first)]}
    names |= linear(f"{stack}.final_norm", f"{stack}.final_layer_norm", bias=False)
    for layer in range(depth):
        names |= _t5_layer(stack, layer, is_gated, root)
    return names


def _t5_layer(stack: str, layer: int, is_gated: bool, root: float) -> Names:
    ours, theirs = f"{stack}.layers.{layer}", f"{stack}.block.{layer}.layer"
    own, last = f"{theirs}.0.SelfAttention", 1
    maps = tuple(f"{own}.{each}" for each in "qkv")
    names = linear(f"{ours}.self_attention.qkv", *maps, bias=False, factors=(root, 1.0, 1.0))
    names |= linear(f"{ours}.self_attention.output", f"{own}.o", bias=False)
    names |= linear(f"{ours}.self_attention_residual.norm", f"{theirs}.0.layer_norm", bias=False)
    if stack == "decoder":
        last, cross = 2, f"{theirs}.1.EncDecAttention"
        place = f"{ours}.cross_attention"
        names |= linear(f"{place}.query", f"{cross}.q", bias=False, factors=(root,))
        names |= linear(f"{place}.key_value", f"{cross}.k", f"{cross}.v", bias=False)
        names |= linear(f"{place}.output", f"{cross}.o", bias=False)
        names |= linear(f"{place}_residual.norm", f"{theirs}.1.layer_norm", bias=False)
    dense = f"{theirs}.{last}.DenseReluDense"
    up = ("wi_0", "wi_1") if is_gated else ("wi",)
    names |= linear(f"{ours}.feed_forward.up", *(f"{dense}.{each}" for each in up), bias=False)
    names |= linear(f"{ours}.feed_forward.down", f"{dense}.wo", bias=False)
    norm = f"{theirs}.{last}.layer_norm"
    return names | linear(f"{ours}.feed_forward_residual.norm", norm, bias=False)


FAMILIES: dict[str, Callable[[Settings, Section, Facts, Container[str]], Named]] = {
    **dict.fromkeys(("bart", "mbart", "marian", "pegasus", "m2m_100", "fsmt"), bart_like),
    "t5": t5,
    "mt5": t5,
}
"""How to name the tensors of a dense model, by its `model_type`."""
