"""The section `model` of a Transformer of fairseq, from its arguments.

A command and a checkpoint both have these arguments, so both are described here.
"""

from __future__ import annotations

from typing import Any

from ds_seq.compat.fairseq.adapters import adapters_section
from ds_seq.compat.fairseq.command import Given
from ds_seq.compat.fairseq.convolutions import mixers_section
from ds_seq.compat.fairseq.experts import experts_section
from ds_seq.compat.fairseq.lora import lora_section
from ds_seq.compat.fairseq.refusals import Refusals
from ds_seq.plugins import nearest

FIRST_POSITION = 2
"""Position of the first token in fairseq: the id of its padding, 1, and the next."""

_ACTIVATIONS = {
    "relu": "relu",
    "relu_squared": "relu_squared",
    "gelu": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}
_GATED = ("glu", "reglu", "geglu", "swiglu")  # as --activation-fn of VarunGumma/fairseq
_GATED_BY = {"relu": "reglu", "gelu": "geglu", "gelu_tanh": "geglu_tanh", "silu": "swiglu"}

# VarunGumma/fairseq divides by the root mean square plus 1e-8, which is that of the mean square
# plus its square; its later version takes PyTorch's norm
_RMS_EPS, _LATER_RMS_EPS = 1e-16, 1e-5


def model_section(given: Given, refusals: Refusals) -> dict[str, Any]:
    """Return the section `model`.

    Args:
        given: the arguments.
        refusals: gets what no model of ds_seq has.
    """
    read = _Reader(given, refusals)
    section: dict[str, Any] = {
        "d_model": read.both("embed_dim"),
        **read.depth(),
        "num_heads": read.both("attention_heads"),
        "ffn_dim": read.both("ffn_embed_dim"),
        **read.activation(),
        "dropout": given["dropout"],
        "attention_dropout": given["attention_dropout"],
        "activation_dropout": given["activation_dropout"] or given["relu_dropout"],
        "norm_position": read.norm_position(),
        "layer_drop": read.both("layerdrop"),
        "positions": read.positions(),
        "max_positions": read.max_positions(),
        "share_embeddings": read.sharing(),
        "embedding_scale": not given["no_scale_embedding"],
        "embedding_norm": bool(given["layernorm_embedding"]),
    }
    if read.both("kv_attention_heads") is not None:
        section["num_kv_heads"] = read.both("kv_attention_heads")
    section |= read.norm() | read.factorized() | mixers_section(given, refusals)
    if given["checkpoint_activations"] or given["offload_activations"]:
        section["activation_checkpointing"] = True
    if section.pop("halved", False):
        section["ffn_dim"] //= 2
    parts = {
        "adapters": adapters_section(given, refusals),
        "lora": lora_section(given, refusals),
        "moe": experts_section(given, refusals),
    }
    return section | {name: part for name, part in parts.items() if part is not None}


class _Reader:
    """Reads axes of a model, of which ds_seq has one for both stacks."""

    def __init__(self, given: Given, refusals: Refusals) -> None:
        self.given, self.refuse = given, refusals.add

    def both(self, what: str) -> Any:
        """Return the value of both stacks."""
        given = self.given
        encoder, decoder = given[f"encoder_{what}"], given[f"decoder_{what}"]
        if decoder is None and what in ("embed_dim", "ffn_embed_dim"):
            decoder = encoder
        if (encoder or 0) != (decoder or 0):
            names = [given.name(f"{stack}_{what}") for stack in ("encoder", "decoder")]
            self.refuse(
                f"{names[0]} {encoder} and {names[1]} {decoder}: the stacks of ds_seq have one "
                "value; give both the same"
            )
        return encoder

    def depth(self) -> dict[str, int]:
        """Return the numbers of layers, and how often they are called."""
        values = {}
        for stack in ("encoder", "decoder"):
            repeats = self.given[f"{stack}_recurrent_stacking"] or 1
            # with recurrent stacking, there is one layer, whatever the number of layers
            values[f"{stack}_layers"] = 1 if repeats > 1 else self.given[f"{stack}_layers"]
            if repeats > 1:
                values[f"{stack}_repeats"] = repeats
        return values

    def activation(self) -> dict[str, Any]:
        """Return the activation; `halved` if it halves the width of the feed-forward."""
        name = self.given["activation_fn"]
        if name in _GATED:
            if self.both("ffn_embed_dim") % 2:
                self.refuse(f"--activation-fn {name}: needs an even feed-forward width")
            return {"activation": name, "halved": True}
        if name not in _ACTIVATIONS:
            known = (*_ACTIVATIONS, *_GATED)
            self.refuse(
                f"--activation-fn {name}: no such activation{nearest(name, known)}; there are "
                f"{', '.join(known)}"
            )
        ours = _ACTIVATIONS.get(name, "relu")
        if self.both("use_glu"):
            if ours not in _GATED_BY:
                self.refuse(f"--encoder-use-glu: there is no gate by {name}")
            ours = _GATED_BY.get(ours, "swiglu")
        return {"activation": ours}

    def norm_position(self) -> str:
        """Return the position of the norms."""
        is_pre = bool(self.both("normalize_before"))
        if is_pre and self.given["no_decoder_final_norm"]:
            self.refuse(
                "--no-decoder-final-norm: a stack with norms before its sub-layers ends with one; "
                "leave it out"
            )
        return "pre" if is_pre else "post"

    def norm(self) -> dict[str, Any]:
        """Return the kind of norm, if it is not layer norm."""
        if self.given["replace_layernorm_with_rmsnorm"]:
            return {"norm": {"name": "rms", "eps": _RMS_EPS}}
        if self.both("use_rmsnorm"):
            return {"norm": {"name": "rms", "eps": _LATER_RMS_EPS}}
        return {}

    def positions(self) -> Any:
        """Return the kind of positions."""
        given = self.given
        kinds: list[Any] = []
        if given["rope_args"] is not None:
            kinds.append(self._rotary(given["rope_args"]))
        if given["alibi_args"] is not None:
            kinds.append("alibi")
        if not given["no_token_positional_embeddings"]:
            learned = self.both("learned_pos")
            kinds.append("learned" if learned else {"name": "sinusoidal", "offset": FIRST_POSITION})
        if len(kinds) > 1:
            self.refuse(
                "--rope-args or --alibi-args: a model has positions of one kind; add "
                "--no-token-positional-embeddings"
            )
        return kinds[0] if kinds else "none"

    def _rotary(self, options: dict[str, Any]) -> dict[str, Any]:
        if options.get("use_xpos"):
            self.refuse("--rope-args use_xpos: not the xpos of ds_seq; leave it out")
        if options.get("scaling_factor", 1.0) != 1.0:
            self.refuse("--rope-args scaling_factor: must be 1")
        return {
            "name": "rotary", "theta": float(options.get("theta", 10000.0)), "interleaved": True
        }  # fmt: skip

    def max_positions(self) -> int:
        """Return the number of positions; `data.max_source_length` may be lower."""
        return max(self.given["max_source_positions"], self.given["max_target_positions"])

    def sharing(self) -> str:
        """Return which embedding tables are one."""
        if self.given["share_all_embeddings"]:
            return "all"
        return "decoder" if self.given["share_decoder_input_output_embed"] else "none"

    def factorized(self) -> dict[str, Any]:
        """Return the width of factorized embeddings, if they are."""
        width = self.both("factorized_embed_dim")
        if width is None:
            return {}
        activation = self.given["factorized_embed_activation_fn"]
        if activation != "linear":
            self.refuse(
                f"--factorized-embed-activation-fn {activation}: there is no activation between "
                "the two factors; leave it out"
            )
        return {"embedding_dim": width}
