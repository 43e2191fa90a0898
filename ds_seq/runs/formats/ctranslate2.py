"""Conversion of dense models for CTranslate2, for `ds-seq export --format ctranslate2`.

CTranslate2 (https://opennmt.net/CTranslate2/) is a fast runtime for Transformers. It reads lists
of pieces instead of text, so the folder also holds our vocabulary, which converts between text and
pieces. In Python::

    pieces = sentencepiece.SentencePieceProcessor("NAME/vocab.model")
    translator = ctranslate2.Translator("NAME")
    results = translator.translate_batch([pieces.encode("some text", out_type=str)], beam_size=5)
    print(pieces.decode(results[0].hypotheses[0]))

CTranslate2 has its own length limit: `max_decoding_length` tokens for any source. A translation
that reaches the limit has no end symbol, whereas ds_seq appends one.

Shapes: D model width, P positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.load import dump
from ds_seq.config.model import ModelConfig, TransformerConfig
from ds_seq.config.model.positions import RotaryConfig
from ds_seq.errors import UserError
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.models.stack import Stack, TransformerLayer
from ds_seq.modules.activations import ACTIVATIONS
from ds_seq.modules.attention import CrossAttention, SelfAttention
from ds_seq.modules.feed_forward import FeedForward
from ds_seq.modules.residual import Residual
from ds_seq.text.tokenizer import Tokenizers
from ds_seq.text.vocab_file import save_tokenizers

WEIGHTS_FILE = "model.bin"
EXPERIMENT_FILE = "experiment.yaml"  # config.json is CTranslate2's

_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
# activation of the hidden layer, or of its gate if there is one
_ACTIVATIONS = {
    "relu": "RELU",
    "gelu": "GELU",
    "gelu_tanh": "GELUTanh",
    "silu": "SWISH",
    "reglu": "RELU",
    "geglu": "GELU",
    "geglu_tanh": "GELUTanh",
    "swiglu": "SWISH",
}
_POSITIONS = frozenset({"sinusoidal", "learned", "rotary"})
_NORMS = frozenset({"layer"})
_NORM_POSITIONS = frozenset({"pre", "post"})
_CONVERTED = frozenset(
    "name preset d_model encoder_layers decoder_layers num_heads ffn_dim ffn_two_thirds activation "
    "dropout attention_dropout activation_dropout layer_drop drop_path activation_checkpointing "
    "norm_position norm positions max_positions share_embeddings embedding_scale moe".split()
)
"""Options of a model that are converted, or that matter in training only."""
_ALL_OF_A_HEAD = 0  # CTranslate2's code for rotating all features of a head


class CTranslate2Converter:
    """Converts models to the format of CTranslate2.

    Args:
        config: experiment of the run. Models that CTranslate2 does not support are rejected here,
            before the weights are read.

    Raises:
        UserError: CTranslate2 does not support the model, or is not installed.
    """

    weights_file = WEIGHTS_FILE

    def __init__(self, config: ExperimentConfig) -> None:
        model = _convertible(config.model)
        try:
            specs = import_module("ctranslate2.specs")
        except ImportError as error:
            raise UserError(
                "--format ctranslate2: needs the package ctranslate2; install it with "
                "`pip install ctranslate2`"
            ) from error
        self._specs: Any = specs
        self._experiment = config
        self._config = model

    def save(
        self, model: nn.Module, tokenizers: Tokenizers, folder: Path, dtype: str = "fp32"
    ) -> str:
        """Write a model into a folder, with its vocabulary and experiment.

        Args:
            model: the whole model that the config describes, in float32.
            tokenizers: tokenizers of source and target.
            folder: existing empty folder.
            dtype: number format on disk: `fp32`, `fp16` or `bf16`. CTranslate2 can also convert
                weights when it loads them, down to 8 bits (its `compute_type`).

        Returns:
            How the folder was compared with the model: not at all, the empty text.

        Raises:
            OSError: the folder cannot be written.
        """
        spec = self._specification(cast(Seq2SeqTransformer, model))
        sources, pieces = (side.pieces(range(len(side))) for side in tokenizers)
        spec.register_source_vocabulary(sources)
        spec.register_target_vocabulary(pieces)
        symbols = tokenizers.symbols
        spec.config.decoder_start_token = pieces[symbols.start]
        spec.config.eos_token = pieces[symbols.eos]
        spec.config.unk_token = pieces[symbols.unk]
        spec.validate()
        spec.optimize(quantization=_DTYPES[dtype])
        spec.save(str(folder))
        save_tokenizers(tokenizers, folder, self._experiment.data.vocab.joint)
        (folder / EXPERIMENT_FILE).write_text(dump(self._experiment), encoding="utf-8")
        return ""

    def _specification(self, model: Seq2SeqTransformer) -> Any:
        """Return the specification of the model without the vocabularies."""
        specs, config = self._specs, self._config
        options: dict[str, Any] = {
            "num_heads": config.num_heads,
            "pre_norm": config.norm_position == "pre",
            "activation": specs.Activation[_ACTIVATIONS[config.activation]],
            "ffn_glu": ACTIVATIONS[config.activation].is_gated,
        }
        if isinstance(config.positions, RotaryConfig):
            options |= {
                "rotary_dim": _ALL_OF_A_HEAD,
                "rotary_interleave": config.positions.interleaved,
            }
        encoder = specs.TransformerEncoderSpec(config.encoder_layers, **options)
        decoder = specs.TransformerDecoderSpec(
            config.decoder_layers,
            alignment_heads=config.num_heads,  # `return_attention`: the mean of the last layer's
            **options,
        )
        target = model.target_embedding
        source = target if model.source_embedding is None else model.source_embedding
        output = target.weight if model.output is None else model.output.weight
        self._stack(encoder, model.encoder)
        self._stack(decoder, model.decoder)
        encoder.embeddings[0].weight = _value(source.weight)
        encoder.scale_embeddings = source.scale
        decoder.embeddings.weight = _value(target.weight)
        decoder.scale_embeddings = target.scale
        decoder.projection.weight = _value(output)
        for part, layer in zip(encoder.layer, model.encoder.layers, strict=True):
            self._layer(part, cast(TransformerLayer, layer))
        for part, layer in zip(decoder.layer, model.decoder.layers, strict=True):
            self._layer(part, cast(TransformerLayer, layer))
        spec = specs.TransformerSpec(encoder, decoder)
        spec.config.add_source_eos = True
        spec.config.layer_norm_epsilon = _epsilon(model)
        return spec

    def _stack(self, spec: Any, stack: Stack) -> None:
        """Copy positions and the final norm."""
        if stack.positions is not None:  # else positions are rotary, applied in the attention
            spec.position_encodings.encodings = _position_rows(
                stack.positions, self._config.max_positions, self._config.d_model
            )
        if stack.final_norm is not None:
            _norm(spec.layer_norm, stack.final_norm)

    def _layer(self, spec: Any, layer: TransformerLayer) -> None:
        """Copy the sublayers of a layer."""
        for name in layer.names:
            body = layer.get_submodule(name)
            residual = cast(Residual, layer.get_submodule(f"{name}_residual"))
            if isinstance(body, SelfAttention):
                _self_attention(spec.self_attention, body, residual)
            elif isinstance(body, CrossAttention):
                _cross_attention(spec.attention, body, residual)
            elif isinstance(body, FeedForward):
                self._feed_forward(spec.ffn, body, residual)
            else:
                raise UserError(
                    f"model: CTranslate2 has no {type(body).__name__}; use --format safetensors"
                )

    def _feed_forward(self, spec: Any, part: FeedForward, residual: Residual) -> None:
        if ACTIVATIONS[self._config.activation].is_gated:  # our matrix stacks gate and value
            gates, values = part.up.weight.chunk(2)
            gate_biases, value_biases = part.up.bias.chunk(2)
            spec.linear_0.weight, spec.linear_0.bias = _value(gates), _value(gate_biases)
            spec.linear_0_noact.weight = _value(values)
            spec.linear_0_noact.bias = _value(value_biases)
        else:
            _linear(spec.linear_0, part.up)
        _linear(spec.linear_1, part.down)
        _norm(spec.layer_norm, residual.norm)


def _convertible(config: ModelConfig) -> TransformerConfig:
    if not isinstance(config, TransformerConfig):
        raise UserError(f"model.name: CTranslate2 has no {config.name!r}; use --format safetensors")
    # supported values are listed, so that new values are rejected instead of ignored silently
    for key, value, known in (
        ("activation", config.activation, _ACTIVATIONS),
        ("positions", config.positions.name, _POSITIONS),
        ("norm", config.norm.name, _NORMS),
        ("norm_position", config.norm_position, _NORM_POSITIONS),
    ):
        if value not in known:
            raise UserError(f"model.{key}: CTranslate2 has no {value!r}; use --format safetensors")
    if config.moe is not None:
        raise UserError(
            "model.moe: CTranslate2 has no experts in an encoder-decoder; merge them with "
            "--merge-experts, or use --format safetensors"
        )
    for key, value, default in _further_options(config):
        if value != default:
            raise UserError(
                f"model.{key}: CTranslate2 has no {key} {value}; use --format safetensors"
            )
    return config


def _further_options(config: TransformerConfig) -> Iterator[tuple[str, Any, Any]]:
    """Yield options that are not converted as (key, value, the value with no effect)."""
    for name, field in type(config).model_fields.items():
        if name not in _CONVERTED:
            yield name, getattr(config, name), field.get_default()
    for name, field in type(config.positions).model_fields.items():
        # sinusoids are stored as rows, which have the other options
        if name not in ("name", "offset", "wavelengths", "interleaved"):
            yield f"positions.{name}", getattr(config.positions, name), field.get_default()


def _self_attention(spec: Any, part: SelfAttention, residual: Residual) -> None:
    _linear(spec.linear[0], part.qkv)
    _linear(spec.linear[1], part.output)
    _norm(spec.layer_norm, residual.norm)


def _cross_attention(spec: Any, part: CrossAttention, residual: Residual) -> None:
    _linear(spec.linear[0], part.query)
    _linear(spec.linear[1], part.key_value)
    _linear(spec.linear[2], part.output)
    _norm(spec.layer_norm, residual.norm)


def _linear(spec: Any, part: nn.Linear) -> None:
    spec.weight, spec.bias = _value(part.weight), _value(part.bias)


def _norm(spec: Any, part: nn.Module) -> None:
    assert isinstance(part, nn.LayerNorm)
    spec.gamma, spec.beta = _value(part.weight), _value(part.bias)


def _value(tensor: Tensor) -> Tensor:
    return tensor.detach().float().contiguous()


def _position_rows(positions: nn.Module, count: int, width: int) -> Tensor:
    """Return the position vectors (P, D) that are added to embedded tokens."""
    with torch.no_grad():
        rows: Tensor = positions(torch.zeros(1, count, width), 0, count)[0]
    return _value(rows)


def _epsilon(model: nn.Module) -> float:
    """Return the epsilon that all layer norms share; CTranslate2 supports only one."""
    (epsilon,) = {part.eps for part in model.modules() if isinstance(part, nn.LayerNorm)}
    return epsilon
