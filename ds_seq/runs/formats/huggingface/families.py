"""Which model of ds_seq a Hugging Face config describes, and where its tensors are.

A family reads `config.json`, refuses by name what has no counterpart here, and returns the section
`model` and the names of the tensors. `moe_families` has those with experts, and `describe` chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ds_seq.errors import UserError
from ds_seq.modules.positions import sinusoidal_rows
from ds_seq.names import EmbeddingSharing
from ds_seq.runs.formats.huggingface.mapping import Names, Part, linear

Config = Mapping[str, Any]
Tensors = Mapping[str, Tensor]

ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}
GATED = {"relu": "reglu", "gelu": "geglu_tanh", "gelu_new": "geglu_tanh", "silu": "swiglu"}


_NONE = torch.zeros(1)


class Described(NamedTuple):
    """A model of ds_seq.

    Attributes:
        section: fields of `model`.
        names: its tensors.
        copies: tensors of theirs that are not read -> why.
        criterion: fields of `criterion`; empty: its defaults.
    """

    section: dict[str, Any]
    names: Names
    copies: Mapping[str, str]
    criterion: Mapping[str, Any] = MappingProxyType({})


class _Kind(NamedTuple):
    """What distinguishes the relatives of BART, whose layers are alike."""

    is_pre_norm: bool
    positions: Any
    has_embedding_norm: bool = False
    has_output_bias: bool = True
    first_row: int = 0
    """First row of learned positions."""


_RELATIVES = {
    "bart": _Kind(False, "learned", has_embedding_norm=True, first_row=2),
    "mbart": _Kind(True, "learned", has_embedding_norm=True, first_row=2),
    "marian": _Kind(False, {"name": "sinusoidal", "wavelengths": "exclusive"}),
    "pegasus": _Kind(True, {"name": "sinusoidal", "wavelengths": "exclusive"}),
    "m2m_100": _Kind(True, {"name": "sinusoidal", "offset": 2}, has_output_bias=False),
    "fsmt": _Kind(False, {"name": "sinusoidal", "offset": 2}, has_output_bias=False),
}


def bart_like(config: Config, theirs: Tensors, path: str) -> Described:
    """Describe BART and its relatives, whose `model_type` says what distinguishes them."""
    kind = _RELATIVES[config["model_type"]]
    is_sided = config["model_type"] == "fsmt"
    if _has_other_positions(kind, theirs):
        kind = kind._replace(positions="learned", first_row=2 if is_sided else 0)
    vocabulary = ("src_vocab_size", "tgt_vocab_size") if is_sided else ("vocab_size",)
    section = _common(config, path, "encoder_attention_heads", "encoder_ffn_dim", vocabulary)
    for encoder, decoder in (
        ("encoder_attention_heads", "decoder_attention_heads"),
        ("encoder_ffn_dim", "decoder_ffn_dim"),
    ):
        if config[encoder] != config[decoder]:
            raise Refused(path, f"{decoder} {config[decoder]}", f"{encoder} {config[encoder]}")
    section |= {
        "encoder_layers": config["encoder_layers"],
        "decoder_layers": config["decoder_layers"],
        "activation": _activation(config["activation_function"], ACTIVATIONS, path),
        "norm_position": "pre" if kind.is_pre_norm else "post",
        "positions": kind.positions,
        "max_positions": config["max_position_embeddings"],
        "embedding_norm": kind.has_embedding_norm and config.get("normalize_embedding", True),
        "embedding_scale": bool(config.get("scale_embedding", is_sided)),
        "share_embeddings": _sharing(is_sided, theirs),
        "output_bias": kind.has_output_bias,
        "attention_dropout": config.get("attention_dropout", 0.0),
        "activation_dropout": config.get("activation_dropout", 0.0),
    }
    if is_sided:
        names = _tables_of_sides(theirs)
    elif _has_output(theirs) or config.get("share_encoder_decoder_embeddings", True) is False:
        raise Refused(path, "a table for each side", "one that all share")
    else:
        names = {"target_embedding.weight": [Part("model.shared.weight", is_table=True)]}
    if kind.has_output_bias:
        names["target_embedding.bias"] = [Part("final_logits_bias", is_table=True)]
    for stack in ("encoder", "decoder"):
        names |= _bart_stack(stack, section, kind)
    shared = "the same as model.shared.weight"
    if names.get("target_embedding.bias") and not theirs.get("final_logits_bias", _NONE).any():
        del names["target_embedding.bias"]  # nothing was learned: a model without it is the same
        section["output_bias"] = False
    copies = {
        "model.encoder.embed_tokens.weight": shared,
        "model.decoder.embed_tokens.weight": shared,
        "model.decoder.output_projection.weight": "the same as another table",
        "lm_head.weight": shared,
        "model.encoder.embed_positions.weight": "computed",
        "model.decoder.embed_positions.weight": "computed",
        "model.encoder.embed_positions.weights": "computed",
        "model.decoder.embed_positions.weights": "computed",
        "final_logits_bias": "zeros",
    }
    return Described(section, names, copies)


SOURCE_OF_SIDES = "model.encoder.embed_tokens.weight"
TARGET_OF_SIDES = "model.decoder.embed_tokens.weight"
OUTPUT_OF_SIDES = "model.decoder.output_projection.weight"
_OF_SIDES = {
    "source_embedding.weight": SOURCE_OF_SIDES,
    "target_embedding.weight": TARGET_OF_SIDES,
    "output.weight": OUTPUT_OF_SIDES,
}


def _sharing(is_sided: bool, theirs: Tensors) -> EmbeddingSharing:
    if not is_sided:
        return "all"
    return "decoder" if _shares_output(theirs) else "none"


def _shares_output(theirs: Tensors) -> bool:
    """Return whether the output projection of FSMT is the table of the target."""
    target, output = theirs.get(TARGET_OF_SIDES), theirs.get(OUTPUT_OF_SIDES)
    return target is None or output is None or torch.equal(target, output)


def _tables_of_sides(theirs: Tensors) -> Names:
    """Return the names of FSMT's tables; of tied ones, only one is stored."""
    names: Names = {}
    for ours, name in _OF_SIDES.items():
        if ours == "output.weight" and _shares_output(theirs):
            continue
        stored = next((each for each in (name, *_OF_SIDES.values()) if each in theirs), name)
        names[ours] = [Part(stored, is_table=True, is_source=ours.startswith("source"))]
    return names


def _bart_stack(stack: str, section: Mapping[str, Any], kind: _Kind) -> Names:
    theirs, names = f"model.{stack}", Names()
    if kind.positions == "learned":
        table = Part(f"{theirs}.embed_positions.weight", skip=kind.first_row)
        names[f"{stack}.positions.weight"] = [table]
    if section["embedding_norm"]:
        names |= linear(f"{stack}.embedding_norm", f"{theirs}.layernorm_embedding")
    if kind.is_pre_norm:
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


def t5(config: Config, theirs: Tensors, path: str) -> Described:
    """Describe T5 and mT5."""
    width, head, has_output = config["d_model"], config["d_kv"], _has_output(theirs)
    function = config.get("feed_forward_proj", "relu")
    is_gated = function.startswith("gated-")
    table = GATED if is_gated else ACTIVATIONS
    if function == "gated-gelu":
        function = "gated-gelu_new"  # as transformers reads it
    section = _common(config, path, "num_heads", "d_ff") | {
        "encoder_layers": config["num_layers"],
        "decoder_layers": config.get("num_decoder_layers") or config["num_layers"],
        "head_dim": None if head * config["num_heads"] == width else head,
        "activation": _activation(function.removeprefix("gated-"), table, path),
        "norm": {"name": "rms", "eps": config.get("layer_norm_epsilon", 1e-6)},
        "norm_position": "pre",
        "positions": {
            "name": "buckets",
            "num_buckets": config.get("relative_attention_num_buckets", 32),
            "max_distance": config.get("relative_attention_max_distance", 128),
        },
        "linear_bias": False,
        "embedding_scale": False,
        "share_embeddings": "inputs" if has_output else "all",
        "dropout": config.get("dropout_rate", 0.1),
        "attention_dropout": config.get("dropout_rate", 0.1),
        "activation_dropout": config.get("dropout_rate", 0.1),
    }
    scale = width**-0.5 if _is_scaled(config) else 1.0
    names: Names = {"target_embedding.weight": [Part("shared.weight", is_table=True)]}
    if has_output:
        names["output.weight"] = [Part("lm_head.weight", is_table=True)]
    for stack in ("encoder", "decoder"):
        names |= _t5_stack(stack, section[f"{stack}_layers"], is_gated, head**0.5)
    (last,) = names["decoder.final_norm.weight"]
    names["decoder.final_norm.weight"] = [last._replace(times=scale)]
    shared = "the same as shared.weight"
    tables = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
    copies = dict.fromkeys(tables + ([] if has_output else ["lm_head.weight"]), shared)
    unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    return Described(section, names, {**copies, unused: "not used by transformers either"})


def _is_scaled(config: Config) -> bool:
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


def _common(
    config: Config, path: str, heads: str, ffn: str, vocabulary: Sequence[str] = ("vocab_size",)
) -> dict[str, Any]:
    missing = [key for key in ("d_model", heads, ffn, *vocabulary) if key not in config]
    if missing:
        raise UserError(f"{path}: config.json has no {', '.join(missing)}; copy it again")
    return {
        "d_model": config["d_model"],
        "num_heads": config[heads],
        "ffn_dim": config[ffn],
        "dropout": config.get("dropout", 0.1),
    }


def _activation(name: str, known: Mapping[str, str], path: str) -> str:
    if name not in known:
        raise Refused(path, f"activation {name}", " or ".join(known))
    return known[name]


def _has_output(theirs: Tensors) -> bool:
    """Return whether the output projection is not the table of the embeddings."""
    output = theirs.get("lm_head.weight")
    table = theirs.get("model.shared.weight", theirs.get("shared.weight"))
    return output is not None and (table is None or not torch.equal(output, table))


def _has_other_positions(kind: _Kind, theirs: Tensors) -> bool:
    """Return whether positions that should be fixed are stored, and are others."""
    stored = theirs.get("model.encoder.embed_positions.weight")
    if kind.positions == "learned" or stored is None:
        return False
    waves = kind.positions.get("wavelengths", "inclusive")
    rows = sinusoidal_rows(len(stored), stored.size(1), waves)
    first = kind.positions.get("offset", 0)  # rows in front of it belong to padding
    return not torch.allclose(stored.float()[first:], rows[first:], atol=1e-3)


class Refused(UserError):
    """A model that has no counterpart."""

    def __init__(self, path: str, given: str, supported: str) -> None:
        super().__init__(f"{path}: {given} has no counterpart in ds_seq, which has {supported}")


FAMILIES: dict[str, Callable[[Config, Tensors, str], Described]] = {
    **dict.fromkeys(_RELATIVES, bart_like),
    "t5": t5,
    "mt5": t5,
}
"""How to read a dense model, by its `model_type`."""
