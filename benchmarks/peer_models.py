"""Dense Transformers of other toolkits, in the environment of each: same sizes, or same weights.

Weights come under fairseq's names (`parity_weights.py`); only the names differ.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # a child that needs no torch, such as CTranslate2's, does without it
    from torch import Tensor, nn

SYMBOLS = ("<s>", "<pad>", "</s>", "<unk>")
BOS, PAD, EOS, UNK = range(len(SYMBOLS))
JOEYNMT_SYMBOLS = (UNK, PAD, BOS, EOS)  # JoeyNMT's order is fixed: our symbol of its id
NORM_EPS = 1e-5

JOEYNMT_NAMES = (
    (r"encoder\.(.*)self_attn\.", r"encoder.\1src_src_att."),
    (r"decoder\.(.*)self_attn\.", r"decoder.\1trg_trg_att."),
    (r"encoder_attn\.", "src_trg_att."),
    (r"\.([qkv])_proj\.", r".\1_layer."),
    (r"out_proj", "output_layer"),
    (r"decoder\.(.*)self_attn_layer_norm", r"decoder.\1x_layer_norm"),
    (r"self_attn_layer_norm", "layer_norm"),
    (r"encoder_attn_layer_norm", "dec_layer_norm"),
    (r"final_layer_norm", "feed_forward.layer_norm"),
    (r"fc1", "feed_forward.pwff_layer.0"),
    (r"fc2", "feed_forward.pwff_layer.3"),
    (r"encoder\.embed_tokens", "src_embed.lut"),
    (r"decoder\.embed_tokens", "trg_embed.lut"),
    (r"output_projection", "output_layer"),
)
EOLE_NAMES = (
    (r"\.layers\.", ".transformer_layers."),
    (r"encoder_attn\.", "context_attn."),
    (r"q_proj", "linear_query"),
    (r"k_proj", "linear_keys"),
    (r"v_proj", "linear_values"),
    (r"out_proj", "final_linear"),
    (r"self_attn_layer_norm", "input_layernorm"),
    (r"encoder_attn_layer_norm", "precontext_layernorm"),
    (r"final_layer_norm", "post_attention_layernorm"),
    (r"fc1", "mlp.gate_up_proj"),
    (r"fc2", "mlp.down_proj"),
    (r"encoder\.embed_tokens", "src_emb.embeddings"),
    (r"decoder\.embed_tokens", "tgt_emb.embeddings"),
    (r"decoder\.output_projection", "generator"),
)


class Sizes(NamedTuple):
    """Sizes that all toolkits share: equally deep stacks with ReLU and biases."""

    vocab_size: int
    layers: int
    d_model: int
    ffn_dim: int
    num_heads: int
    dropout: float
    norm_position: str


def joeynmt_model(sizes: Sizes, weights: Mapping[str, Tensor] | None = None) -> Any:
    """Return JoeyNMT's model, whose first four ids are `JOEYNMT_SYMBOLS`.

    Args:
        sizes: sizes of the model.
        weights: weights under fairseq's names; None for random ones, tied as in ds_seq.
    """
    import torch
    from joeynmt.model import build_model
    from joeynmt.vocabulary import Vocabulary

    symbols: dict[str, Any] = {"lang_tags": [], "sep_token": None}
    for index, ours in enumerate(JOEYNMT_SYMBOLS):
        name = ("bos", "pad", "eos", "unk")[ours]
        symbols |= {f"{name}_token": SYMBOLS[ours], f"{name}_id": index}
    vocabulary = Vocabulary(_pieces(sizes.vocab_size), SimpleNamespace(**symbols))
    stack = {
        "type": "transformer",
        "num_layers": sizes.layers,
        "num_heads": sizes.num_heads,
        "hidden_size": sizes.d_model,
        "ff_size": sizes.ffn_dim,
        "dropout": sizes.dropout,
        "layer_norm": sizes.norm_position,
        "activation": "relu",
        "embeddings": {"embedding_dim": sizes.d_model, "scale": True, "dropout": sizes.dropout},
    }
    tied = weights is None
    section = {"encoder": stack, "decoder": stack, "tied_embeddings": tied, "tied_softmax": tied}
    model: Any = build_model(section, vocabulary, vocabulary)
    if weights is not None:
        _load(model, renamed(weights, JOEYNMT_NAMES))
        _reorder(model, torch.tensor([*JOEYNMT_SYMBOLS, *range(len(SYMBOLS), sizes.vocab_size)]))
    return model


def _reorder(model: Any, order: Tensor) -> None:
    """Use JoeyNMT's ids; its target texts begin with <s>, ours and fairseq's with </s>."""
    import torch
    from torch import nn

    tables = (model.src_embed.lut, model.trg_embed.lut, model.decoder.output_layer)
    with torch.no_grad():
        for table in tables:
            table.weight.copy_(table.weight[order])
        rows = model.trg_embed.lut.weight
        rows[JOEYNMT_SYMBOLS.index(BOS)] = rows[JOEYNMT_SYMBOLS.index(EOS)]
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = NORM_EPS
        for stack in (model.encoder, model.decoder):
            stack.pe.pe.copy_(_sinusoids(*stack.pe.pe.shape[1:]))


def _sinusoids(positions: int, width: int) -> Tensor:
    """Sines in the first half of the width, cosines in the second, as fairseq; (P, width)."""
    import torch

    half = width // 2
    rates = torch.exp(torch.arange(half) * -(math.log(10_000.0) / (half - 1)))
    angles = torch.arange(positions)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Eole(NamedTuple):
    """A model of eole with what its trainer and its search need."""

    model: Any
    vocabularies: dict[str, Any]
    config: Any


def eole_model(
    sizes: Sizes, training: Mapping[str, Any], weights: Mapping[str, Tensor] | None = None
) -> Eole:
    """Return eole's model; it is pre-norm, since eole has no other decoder.

    Args:
        sizes: sizes of the model.
        training: section `training` of eole's configuration.
        weights: weights under fairseq's names; None for random ones.
    """
    import pyonmttok
    from eole.config.run import TrainConfig
    from eole.models.model import EncoderDecoderModel

    vocabulary = pyonmttok.build_vocab_from_tokens([*SYMBOLS, *_pieces(sizes.vocab_size)])
    names = dict(zip(("bos", "pad", "eos", "unk"), SYMBOLS, strict=True))
    vocabularies = {
        "src": vocabulary,
        "tgt": vocabulary,
        "specials": {f"{name}_token": symbol for name, symbol in names.items()},
        "decoder_start_token": SYMBOLS[EOS],
    }
    positions = {"position_encoding_type": "SinusoidalConcat"}
    architecture = {
        "architecture": "transformer",
        "layers": sizes.layers,
        "hidden_size": sizes.d_model,
        "heads": sizes.num_heads,
        "transformer_ff": sizes.ffn_dim,
        "embeddings": {"word_vec_size": sizes.d_model, **positions},
        **positions,
        **dict.fromkeys(("share_embeddings", "share_decoder_embeddings"), True),
        **dict.fromkeys(("add_qkvbias", "add_final_linear_bias", "add_ffnbias"), True),
        "generator_bias": False,
        "mlp_activation_fn": "relu",
        "norm_eps": NORM_EPS,
    }
    dropout = {"dropout": [sizes.dropout], "attention_dropout": [0.0]}
    config = TrainConfig(
        src_vocab="",
        tgt_vocab="",
        data={},
        share_vocab=True,
        model=architecture,
        training={"compute_dtype": "fp32", **dropout, **training},
    )
    model: Any = EncoderDecoderModel.for_training(
        config.model, vocabularies, config.training, device_id=-1
    )
    if weights is not None:
        _load(model, renamed(weights, EOLE_NAMES))
    return Eole(model, vocabularies, config)


def _pieces(vocab_size: int) -> list[str]:
    return [f"piece{index}" for index in range(len(SYMBOLS), vocab_size)]


def renamed(
    weights: Mapping[str, Tensor], table: Sequence[tuple[str, str]]
) -> Iterator[tuple[str, Tensor]]:
    """Yield weights under other names.

    Args:
        weights: weights under fairseq's names.
        table: `JOEYNMT_NAMES` or `EOLE_NAMES`; replacements by `re.sub`, in this order.
    """
    for name, value in weights.items():
        for theirs, other in table:
            name = re.sub(theirs, other, name)
        yield name, value


def _load(model: nn.Module, weights: Iterator[tuple[str, Tensor]]) -> None:
    """Copy weights; every parameter must get one of its shape."""
    import torch

    found = dict(weights)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    assert parameters.keys() <= found.keys(), sorted(parameters.keys() - found.keys())
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(found[name])


def padded(rows: Sequence[Sequence[int]], left: bool = False) -> Tensor:
    """Return (B, S) ids, padded on the right or the left."""
    import torch

    width = max(map(len, rows))
    gaps = [[PAD] * (width - len(row)) for row in rows]
    return torch.tensor(
        [[*gap, *row] if left else [*row, *gap] for gap, row in zip(gaps, rows, strict=True)]
    )


def by_length(sources: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Yield the numbers of the sentences of each batch, longest first."""
    order = sorted(range(len(sources)), key=lambda i: -len(sources[i]))
    for first in range(0, len(order), size):
        yield order[first : first + size]
