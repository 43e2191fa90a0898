"""Conversion of dense models for CTranslate2, for `ds-seq export --format ctranslate2`.

CTranslate2 (https://opennmt.net/CTranslate2/) is a fast runtime for Transformers. It reads lists
of pieces instead of text, so the folder also holds the vocabulary, which converts between text and
pieces; `usage.example` shows how.

CTranslate2 has its own length limit: `max_decoding_length` tokens for any source. A translation
that reaches the limit has no end symbol, whereas ds_seq appends one.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import nn

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.load import dump
from ds_seq.config.model.positions import BucketsConfig, RotaryConfig
from ds_seq.errors import UserError
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.models.stack import Stack, TransformerLayer
from ds_seq.modules.activations import ACTIVATIONS as OURS
from ds_seq.modules.attention import CrossAttention, SelfAttention
from ds_seq.modules.feed_forward import FeedForward
from ds_seq.modules.position_bias import BucketBias
from ds_seq.modules.residual import Residual
from ds_seq.runs.formats.ctranslate2.comparison import check_written
from ds_seq.runs.formats.ctranslate2.support import ACTIVATIONS, convertible
from ds_seq.runs.formats.ctranslate2.usage import is_framed, save_vocabulary
from ds_seq.runs.formats.ctranslate2.values import linear, norm, position_rows, table, value
from ds_seq.runs.formats.huggingface.origin import Origin
from ds_seq.text.tokenizer import Tokenizers

WEIGHTS_FILE = "model.bin"
EXPERIMENT_FILE = "experiment.yaml"  # config.json is CTranslate2's

_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
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
        model = convertible(config.model)
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

        CTranslate2 then opens the folder, and scores and translates lines as the model must do.

        Args:
            model: the whole model that the config describes, in float32.
            tokenizers: tokenizers of source and target.
            folder: existing empty folder.
            dtype: number format on disk: `fp32`, `fp16` or `bf16`. CTranslate2 can also convert
                weights when it loads them, down to 8 bits (its `compute_type`).

        Returns:
            How the folder was compared with the model, a sentence.

        Raises:
            UserError: CTranslate2 computes something else.
            OSError: the folder cannot be written.
        """
        spec = self._specification(cast(Seq2SeqTransformer, model))
        source, target = (side.pieces(range(len(side))) for side in tokenizers)
        spec.register_source_vocabulary(source)
        spec.register_target_vocabulary(target)
        symbols = tokenizers.symbols
        spec.config.decoder_start_token = target[symbols.start]
        spec.config.bos_token = target[symbols.start if symbols.bos is None else symbols.bos]
        spec.config.eos_token = target[symbols.eos]
        spec.config.unk_token = target[symbols.unk]
        spec.config.add_source_eos = not is_framed(tokenizers)
        if (kind := Origin(tokenizers).kind) is not None:  # so that `AutoTokenizer` knows its class
            spec.config.add_attribute("model_type", kind)
        spec.validate()
        spec.optimize(quantization=_DTYPES[dtype])
        spec.save(str(folder))
        save_vocabulary(tokenizers, folder, self._experiment)
        (folder / EXPERIMENT_FILE).write_text(dump(self._experiment), encoding="utf-8")
        return check_written(folder, model, tokenizers, self._experiment, dtype)

    def _specification(self, model: Seq2SeqTransformer) -> Any:
        """Return the specification of the model without the vocabularies."""
        specs, config, options = self._specs, self._config, self._options()
        encoder = specs.TransformerEncoderSpec(config.calls_of("encoder"), **options)
        decoder = specs.TransformerDecoderSpec(
            config.calls_of("decoder"),
            alignment_heads=config.num_heads,  # `return_attention`: the mean of the last layer's
            **options,
        )
        target = model.target_embedding
        source = target if model.source_embedding is None else model.source_embedding
        encoder.embeddings[0].weight = table(source)
        encoder.scale_embeddings = source.scale
        decoder.embeddings.weight = table(target)
        decoder.scale_embeddings = target.scale
        if model.output is None:
            decoder.projection.weight = table(target)
            if target.bias is not None:
                decoder.projection.bias = value(target.bias)
        else:
            linear(decoder.projection, model.output)
        self._stack(encoder, model.encoder)
        self._stack(decoder, model.decoder)
        spec = specs.TransformerSpec(encoder, decoder)
        spec.config.layer_norm_epsilon = config.norm.eps
        return spec

    def _options(self) -> dict[str, Any]:
        """Return what is the same in encoder and decoder."""
        config, positions = self._config, self._config.positions
        options: dict[str, Any] = {
            "num_heads": config.num_heads,
            "num_heads_kv": config.num_kv_heads,
            "head_dim": config.head_dim,
            "pre_norm": config.normalizes_first,
            "rms_norm": config.norm.name == "rms",
            "layernorm_embedding": config.embedding_norm,
            "activation": self._specs.Activation[ACTIVATIONS[config.activation]],
            "ffn_glu": OURS[config.activation].is_gated,
            "relative_attention_bias": isinstance(positions, BucketsConfig),
        }
        if isinstance(positions, RotaryConfig):
            options |= {
                "rotary_dim": _ALL_OF_A_HEAD,
                "rotary_interleave": positions.interleaved,
                "rotary_base": positions.theta,
            }
            if positions.scaling == "linear":
                options |= {
                    "rotary_scaling_type": self._specs.RotaryScalingType.Linear,
                    "rotary_scaling_factor": positions.factor,
                }
        return options

    def _stack(self, spec: Any, stack: Stack) -> None:
        """Copy positions, norms and layers; one that is called several times has several copies."""
        config = self._config
        if config.positions.name in ("sinusoidal", "learned", "none"):
            spec.position_encodings.encodings = position_rows(
                stack.positions, config.max_positions, config.d_model
            )
        if stack.embedding_norm is not None:
            norm(spec.layernorm_embedding, stack.embedding_norm)
        if stack.final_norm is not None:
            norm(spec.layer_norm, stack.final_norm)
        layers = list(stack.layers) * stack.repeats
        for part, layer in zip(spec.layer, layers, strict=True):
            self._layer(part, cast(TransformerLayer, layer))
            if isinstance(config.positions, BucketsConfig):
                distance = np.int32(config.positions.max_distance)
                weight = cast(BucketBias, stack.bias).weight  # one for all layers
                part.self_attention.relative_attention_bias = value(weight)
                part.self_attention.relative_attention_max_distance = distance

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
        if OURS[self._config.activation].is_gated:  # our matrix stacks gate and value
            for where, half in ((spec.linear_0, 0), (spec.linear_0_noact, 1)):
                where.weight = value(part.up.weight.chunk(2)[half])
                if part.up.bias is not None:
                    where.bias = value(part.up.bias.chunk(2)[half])
        else:
            linear(spec.linear_0, part.up)
        linear(spec.linear_1, part.down, residual.scale)
        norm(spec.layer_norm, residual.norm)


def _self_attention(spec: Any, part: SelfAttention, residual: Residual) -> None:
    linear(spec.linear[0], part.qkv)
    linear(spec.linear[1], part.output, residual.scale)
    norm(spec.layer_norm, residual.norm)


def _cross_attention(spec: Any, part: CrossAttention, residual: Residual) -> None:
    linear(spec.linear[0], part.query)
    linear(spec.linear[1], part.key_value)
    linear(spec.linear[2], part.output, residual.scale)
    norm(spec.layer_norm, residual.norm)
