"""The section `model` of dense models, by the `model_type` of their `config.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ds_seq.config.huggingface.facts import Facts
from ds_seq.errors import UserError
from ds_seq.names import EmbeddingSharing

Settings = Mapping[str, Any]
Section = dict[str, Any]

ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}
GATED = {"relu": "reglu", "gelu": "geglu_tanh", "gelu_new": "geglu_tanh", "silu": "swiglu"}


class Refused(UserError):
    """A model that has no counterpart."""

    def __init__(self, path: str, given: str, supported: str) -> None:
        super().__init__(f"{path}: {given} has no counterpart in ds_seq, which has {supported}")


class _Kind(NamedTuple):
    """What distinguishes the relatives of BART, whose layers are alike."""

    is_pre_norm: bool
    positions: Any
    has_embedding_norm: bool = False
    has_output_bias: bool = True


_RELATIVES = {
    "bart": _Kind(False, "learned", has_embedding_norm=True),
    "mbart": _Kind(True, "learned", has_embedding_norm=True),
    "marian": _Kind(False, {"name": "sinusoidal", "wavelengths": "exclusive"}),
    "pegasus": _Kind(True, {"name": "sinusoidal", "wavelengths": "exclusive"}),
    "m2m_100": _Kind(True, {"name": "sinusoidal", "offset": 2}, has_output_bias=False),
    "fsmt": _Kind(False, {"name": "sinusoidal", "offset": 2}, has_output_bias=False),
}


def bart_like(config: Settings, facts: Facts, path: str) -> Section:
    """Return the section of BART and its relatives."""
    kind = _RELATIVES[config["model_type"]]
    is_sided = config["model_type"] == "fsmt"
    vocabulary = ("src_vocab_size", "tgt_vocab_size") if is_sided else ("vocab_size",)
    sides = ("attention_heads", "ffn_dim")
    needed = (
        *(f"{stack}_{what}" for what in (*sides, "layers") for stack in ("encoder", "decoder")),
        "activation_function",
        "max_position_embeddings",
    )
    check_numbers(config, needed, path)
    section = _common(config, path, "encoder_attention_heads", "encoder_ffn_dim", vocabulary)
    for what in sides:
        encoder, decoder = f"encoder_{what}", f"decoder_{what}"
        if config[encoder] != config[decoder]:
            raise Refused(path, f"{decoder} {config[decoder]}", f"{encoder} {config[encoder]}")
    shares = config.get("share_encoder_decoder_embeddings", True)
    if not is_sided and (facts.has_output or shares is False):
        raise Refused(path, "a table for each side", "one that all share")
    return section | {
        "encoder_layers": config["encoder_layers"],
        "decoder_layers": config["decoder_layers"],
        "activation": _activation(config["activation_function"], ACTIVATIONS, path),
        "norm_position": "pre" if kind.is_pre_norm else "post",
        "positions": "learned" if facts.has_positions else kind.positions,
        "max_positions": config["max_position_embeddings"],
        "embedding_norm": kind.has_embedding_norm and config.get("normalize_embedding", True),
        "embedding_scale": bool(config.get("scale_embedding", is_sided)),
        "share_embeddings": _sharing(is_sided, facts),
        # where nothing was learned, a model without the bias is the same
        "output_bias": kind.has_output_bias and facts.has_bias,
        "attention_dropout": config.get("attention_dropout", 0.0),
        "activation_dropout": config.get("activation_dropout", 0.0),
    }


def t5(config: Settings, facts: Facts, path: str) -> Section:
    """Return the section of T5 and mT5."""
    check_numbers(config, ("d_model", "d_kv", "num_layers", "num_heads"), path)
    width, head = config["d_model"], config["d_kv"]
    function = str(config.get("feed_forward_proj", "relu"))
    is_gated = function.startswith("gated-")
    table = GATED if is_gated else ACTIVATIONS
    if function == "gated-gelu":
        function = "gated-gelu_new"  # as transformers reads it
    return _common(config, path, "num_heads", "d_ff") | {
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
        "share_embeddings": "inputs" if facts.has_output else "all",
        "dropout": config.get("dropout_rate", 0.1),
        "attention_dropout": config.get("dropout_rate", 0.1),
        "activation_dropout": config.get("dropout_rate", 0.1),
    }


def check_numbers(config: Settings, keys: Sequence[str], path: str) -> None:
    """Check that `config.json` has keys, and whole numbers where they are sizes.

    Raises:
        UserError: it does not.
    """
    missing = [key for key in keys if key not in config]
    if missing:
        raise UserError(f"{path}: config.json has no {', '.join(missing)}; copy it again")
    for key in keys:
        value = config[key]
        if key != "activation_function" and (type(value) is not int or value < 1):
            raise UserError(f"{path}: config.json: {key} is {value!r}, which is no size")


def _sharing(is_sided: bool, facts: Facts) -> EmbeddingSharing:
    if not is_sided:
        return "all"
    return "none" if facts.has_output else "decoder"


def _common(
    config: Settings, path: str, heads: str, ffn: str, vocabulary: Sequence[str] = ("vocab_size",)
) -> Section:
    check_numbers(config, ("d_model", heads, ffn, *vocabulary), path)
    return {
        "d_model": config["d_model"],
        "num_heads": config[heads],
        "ffn_dim": config[ffn],
        "dropout": config.get("dropout", 0.1),
    }


def _activation(name: Any, known: Mapping[str, str], path: str) -> str:
    if name not in known:
        raise Refused(path, f"activation {name}", " or ".join(known))
    return known[name]


DENSE: dict[str, Callable[[Settings, Facts, str], Section]] = {
    **dict.fromkeys(_RELATIVES, bart_like),
    "t5": t5,
    "mt5": t5,
}
"""How to read the config of a dense model, by its `model_type`."""
