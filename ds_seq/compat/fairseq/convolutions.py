"""What the flags of fairseq's lightconv and fconv say about a model."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from ds_seq.compat.fairseq.adaptive import adaptive_softmax
from ds_seq.compat.fairseq.command import Given
from ds_seq.compat.fairseq.refusals import Refusals
from ds_seq.names import STACKS

LIGHTCONV = "lightconv"
"""How the names of architectures with lightweight or dynamic convolutions begin."""
FCONV, FCONV_LM = "fconv", "fconv_lm"
"""How those of gated convolutions begin, and those of language models among them."""

FLAGS = (
    *(
        f"{stack}_{part}"
        for stack in STACKS
        for part in ("conv_type", "conv_dim", "kernel_size_list", "glu")
    ),
    *("weight_softmax", "weight_dropout", "input_dropout"),
)
"""Flags that only those architectures have."""

_MOST_LAYERS, _MOST_TEXT = 1000, 10_000
_TRUTH = {"true": True, "1": True, "false": False, "0": False}


def is_lightconv(given: Given) -> bool:
    """Return whether the model has lightweight or dynamic convolutions."""
    return str(given["arch"] or "").startswith(LIGHTCONV)


def is_gated(given: Given) -> bool:
    """Return whether the model has gated convolutions."""
    return str(given["arch"] or "").startswith(FCONV)


def mixers_section(given: Given, refusals: Refusals) -> dict[str, Any]:
    """Return the mixers of both stacks; empty for a model without convolutions."""
    if not is_lightconv(given):
        for dest in (each for each in FLAGS if given.typed(each)):
            refusals.add(f"{given.name(dest)}: belongs to --arch lightconv; leave it out")
        return {}
    return {f"{stack}_mixer": _mixer(stack, given, refusals) for stack in STACKS}


def _mixer(stack: str, given: Given, refusals: Refusals) -> dict[str, Any]:
    kind = given[f"{stack}_conv_type"]
    if kind not in ("dynamic", "lightweight"):
        name = given.name(f"{stack}_conv_type")
        refusals.add(f"{name} {kind}: give dynamic or lightweight")
    section: dict[str, Any] = {
        "name": f"{kind}_convolution",
        "glu": _truth(f"{stack}_glu", given, refusals),
        "weight_softmax": _truth("weight_softmax", given, refusals),
        "input_dropout": given["input_dropout"],
    }
    if given["weight_dropout"] is not None:
        section["weight_dropout"] = given["weight_dropout"]
    if given[f"{stack}_kernel_size_list"] is not None:
        section["kernel_sizes"] = given[f"{stack}_kernel_size_list"]
    width = given[f"{stack}_conv_dim"]
    if width is not None and width != given[f"{stack}_embed_dim"]:
        section["width"] = width
    return section


def _truth(dest: str, given: Given, refusals: Refusals) -> bool:
    """Return a value that fairseq reads as Python's True or False."""
    value = _TRUTH.get(str(given[dest]).lower())
    if value is None:
        refusals.add(f"{given.name(dest)} {given[dest]}: give True or False")
    return bool(value)


def gated_section(arguments: Mapping[str, Any], refusals: Refusals) -> dict[str, Any]:
    """Return the section `model` of an fconv checkpoint.

    Args:
        arguments: the arguments of its training, by their names with underscores.
        refusals: gets what no model of ds_seq has.
    """
    given = {**_DEFAULTS, **{key: value for key, value in arguments.items() if value is not None}}
    width, other = given["encoder_embed_dim"], given["decoder_embed_dim"]
    if width != other:
        refusals.add(f"--encoder-embed-dim {width} and --decoder-embed-dim {other}: must be equal")
    attention = _literal(given["decoder_attention"])
    if attention is not True and (not isinstance(attention, list) or not all(attention)):
        refusals.add(f"--decoder-attention {attention}: every layer attends to the source here")
    positions = max(given["max_source_positions"], given["max_target_positions"])
    return {
        "name": "convolutional",
        "embedding_dim": width,
        "output_dim": given["decoder_out_embed_dim"],
        "share_embeddings": "decoder" if given["share_input_output_embed"] else "none",
        "dropout": given["dropout"],
        "max_positions": positions - FIRST_ROW,
        **{
            f"{stack}_convolutions": _layers(stack, given[f"{stack}_layers"], refusals)
            for stack in STACKS
        },
    }


def gated_lm_section(arguments: Mapping[str, Any], refusals: Refusals) -> dict[str, Any]:
    """Return the section `model` of an fconv_lm checkpoint; see `gated_section`."""
    given = {**_LM_DEFAULTS, **{k: value for k, value in arguments.items() if value is not None}}
    if _literal(given["decoder_attention"]) is not False:
        refusals.add(f"--decoder-attention {given['decoder_attention']}: there is no source")
    layers = _layers("decoder", given["decoder_layers"], refusals)
    adaptive = adaptive_softmax(given)
    return {
        "name": "convolutional_lm",
        "embedding_dim": given["decoder_embed_dim"],
        "decoder_convolutions": layers,
        "dropout": given["dropout"],
        "max_positions": int(given.get("max_target_positions") or given["tokens_per_sample"]),
        **({} if adaptive is None else {"adaptive": adaptive}),
    }


FIRST_ROW = 2
"""Rows of the positions of fconv that belong to no token; there they count as positions."""

_DEFAULTS: Mapping[str, Any] = {
    "encoder_embed_dim": 512,
    "decoder_embed_dim": 512,
    "decoder_out_embed_dim": 256,
    "encoder_layers": "[(512, 3)] * 20",
    "decoder_layers": "[(512, 3)] * 20",
    "decoder_attention": "True",
    "share_input_output_embed": False,
    "dropout": 0.1,
    "max_source_positions": 1024,
    "max_target_positions": 1024,
}

_LM_DEFAULTS: Mapping[str, Any] = {
    "decoder_embed_dim": 128,
    "decoder_layers": "[(1268, 4)] * 13",
    "decoder_attention": "False",
    "dropout": 0.1,
    "tokens_per_sample": 1024,
}


def _layers(stack: str, text: Any, refusals: Refusals) -> list[list[int]]:
    """Return the layers of a stack: channels, size, and whose input is added if that is said."""
    try:
        layers = tuples_in(text)
        if any(len(layer) not in (2, 3) for layer in layers):
            raise ValueError("neither pairs nor triples")
        return layers
    except ValueError:
        refusals.add(f"--{stack}-layers {text}: should be a list of pairs, as [(512, 3)] * 20")
        return []


def tuples_in(text: Any) -> list[list[int]]:
    """Return the tuples of whole numbers in a list that is written as an expression of Python.

    Args:
        text: such as `[(512, 3)] * 20 + [(1024, 1)]`; nothing but this is evaluated.

    Raises:
        ValueError: it is something else.
    """
    try:
        tuples = _list(ast.parse(str(text)[:_MOST_TEXT], mode="eval").body)
        return [[int(each) for each in own] for own in tuples]
    except (SyntaxError, TypeError, RecursionError, MemoryError):
        raise ValueError("no list of tuples") from None


def _list(tree: ast.expr) -> list[list[int]]:
    """Return the list that sums and multiples of lists make, without evaluating anything else.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Add):
        found = _list(tree.left) + _list(tree.right)
    elif isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Mult):
        times = ast.literal_eval(tree.right)
        if not isinstance(times, int) or not 0 <= times <= _MOST_LAYERS:
            raise ValueError("not a number of layers")
        found = _list(tree.left) * times
    else:
        found = [list(layer) for layer in ast.literal_eval(tree)]
    if len(found) > _MOST_LAYERS:
        raise ValueError("too many layers")
    return found


def _literal(value: Any) -> Any:
    try:
        return ast.literal_eval(value) if isinstance(value, str) else value
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None
