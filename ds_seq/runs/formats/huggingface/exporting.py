"""Write a model of ds_seq as a Hugging Face folder.

The config of the folder is read back by `families`, so that a model is only written if the reader
finds the very same model in it. Its table of names, turned around, says which tensors to write.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ds_seq.config.base import Config, NamedConfig
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.huggingface.dense import ACTIVATIONS, GATED
from ds_seq.config.huggingface.experts import NLLB_MOE, SWITCH
from ds_seq.config.huggingface.facts import OUTPUT_TABLE, SOURCE_TABLE, TARGET_TABLE, Facts
from ds_seq.config.model import TransformerConfig
from ds_seq.errors import UserError
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.models.stack import Stack
from ds_seq.runs.formats.huggingface.comparison import check_written, sample_lines
from ds_seq.runs.formats.huggingface.describe import Described, describe
from ds_seq.runs.formats.huggingface.mapping import Names, Orders
from ds_seq.runs.formats.huggingface.moe_exporting import ARCHITECTURES as MOE_ARCHITECTURES
from ds_seq.runs.formats.huggingface.moe_exporting import check_experts, moe_settings
from ds_seq.runs.formats.huggingface.origin import Origin, languages_of
from ds_seq.runs.formats.huggingface.sided_vocabulary import check_sides, save_sides
from ds_seq.runs.formats.huggingface.vocabulary import save_vocabulary
from ds_seq.runs.open import DTYPES
from ds_seq.text.moses import Moses
from ds_seq.text.tokenizer import Symbols, Tokenizers
from ds_seq.weights.fill import model_tensors

FSMT = "fsmt"
# of several names for one activation, the first
_PLAIN = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
_GATES = {ours: f"gated-{theirs}" for theirs, ours in reversed(GATED.items())}
_WITH_POSITIONS = {
    "bart": ("learned",),
    "mbart": ("learned",),
    "marian": ("sinusoidal", "learned"),
    "pegasus": ("sinusoidal", "learned"),
    "m2m_100": ("sinusoidal",),
    FSMT: ("sinusoidal", "learned"),
    "t5": ("buckets",),
    "mt5": ("buckets",),
    NLLB_MOE: ("sinusoidal",),
    SWITCH: ("buckets",),
}
_POSITIONS = "model.{}.embed_positions.weight"
_IN_TRAINING_ONLY = frozenset(
    {"dropout", "attention_dropout", "activation_dropout", "layer_drop", "drop_path"}
)
_COMPARED_OTHERWISE = frozenset({"positions", "moe"})
_SPELLINGS = frozenset({"name", "preset", "activation_checkpointing"})
_ARCHITECTURES = {
    "bart": "BartForConditionalGeneration",
    "mbart": "MBartForConditionalGeneration",
    "marian": "MarianMTModel",
    "pegasus": "PegasusForConditionalGeneration",
    "m2m_100": "M2M100ForConditionalGeneration",
    FSMT: "FSMTForConditionalGeneration",
    "t5": "T5ForConditionalGeneration",
    "mt5": "MT5ForConditionalGeneration",
    **MOE_ARCHITECTURES,
}


class HuggingFaceExporter:
    """Writes the model of an experiment as a folder that transformers opens.

    Args:
        config: experiment of the run. Models that transformers does not have are refused here,
            before the weights are read.
        tokenizers: tokenizers of the run.

    Raises:
        UserError: transformers has no such model; names the option that it lacks.
    """

    weights_file = "model.safetensors"

    def __init__(self, config: ExperimentConfig, tokenizers: Tokenizers) -> None:
        model = config.model
        if not isinstance(model, TransformerConfig) or len(model.stacks) == 1:
            raise UserError(
                f"model.name: --format hf writes no model {model.name!r}; use another --format"
            )
        self._origin = Origin(tokenizers)
        is_sided = not config.data.vocab.joint
        if is_sided and self._origin.kind is None:
            check_sides(tokenizers)
        self._config, self._model, self._tokenizers = config, model, tokenizers
        self._kind = FSMT if is_sided else _family(model, self._origin.kind)
        kinds = _WITH_POSITIONS[self._kind]
        if model.positions.name not in kinds:
            raise UserError(
                f"model.positions: {self._kind} of transformers has {' or '.join(kinds)} ones, not "
                f"{model.positions.name}; use another --format"
            )
        self._settings = self._make_settings()
        self._described()  # refuses what the family does not have

    def save(
        self, model: nn.Module, tokenizers: Tokenizers, folder: Path, dtype: str = "fp32"
    ) -> str:
        """Write config, weights, vocabulary and settings of generation into an empty folder.

        The folder is then read back and compared with the model, and with what transformers makes
        of it if that is installed.

        Args:
            model: the whole model, in float32.
            tokenizers: tokenizers of source and target.
            folder: existing empty folder.
            dtype: number format on disk: `fp32`, `fp16` or `bf16`.

        Returns:
            How the folder was compared with the model, a sentence.

        Raises:
            UserError: transformers lacks a part of the model, or its vocabulary.
            OSError: the folder cannot be written.
        """
        ours = {name: value.detach() for name, value in model_tensors(model)}
        theirs = self._stored_positions(cast(Seq2SeqTransformer, model))
        described = self._described()
        for stack in ("encoder", "decoder"):  # computed here, stored there
            if f"{stack}.positions.weight" not in ours:
                described.names.pop(f"{stack}.positions.weight", None)
        theirs |= _turned_around(described.names, ours, self._origin.orders)
        if self._kind == FSMT and self._model.shares_output:
            theirs[OUTPUT_TABLE] = theirs[TARGET_TABLE].clone()
        if self._kind in ("bart", "mbart", "marian", "pegasus"):
            theirs.setdefault("final_logits_bias", torch.zeros(1, len(self._tokenizers.target)))
        precision = DTYPES[dtype]
        tensors = {name: value.to(precision).contiguous() for name, value in theirs.items()}
        save_file(tensors, folder / self.weights_file, {"format": "pt"})
        settings = {**self._settings, "dtype": str(precision).removeprefix("torch.")}
        _write(folder / "config.json", settings)
        _write(folder / "generation_config.json", self._generation())
        data, languages = self._config.data, languages_of(self._config)
        lines = sample_lines(tokenizers)
        if self._origin.kind is not None:
            self._origin.save_vocabulary(folder, languages)
        elif self._kind == FSMT:
            save_sides(tokenizers, folder, (data.source_lang, data.target_lang))
            # FSMT also makes punctuation plain: text in which it is plain is the same for both
            lines = [Moses(data.source_lang, "--format hf").normalize(line) for line in lines]
        else:
            save_vocabulary(tokenizers, folder, self._kind, (data.source_lang, data.target_lang))
        return check_written(folder, model, tokenizers, languages, precision, lines)

    def _make_settings(self) -> dict[str, Any]:
        model, sizes = self._model, self._tokenizers.sizes
        is_sided = self._kind == FSMT
        vocabulary: dict[str, Any] = {"vocab_size": sizes.target}
        if is_sided:
            languages = [self._config.data.source_lang, self._config.data.target_lang]
            vocabulary = {
                "src_vocab_size": sizes.source,
                "tgt_vocab_size": sizes.target,
                "langs": self._origin.settings.get("langs", languages),
            }
        common: dict[str, Any] = {
            **(self._origin.settings if self._kind == self._origin.kind else {}),
            "model_type": self._kind,
            "architectures": [_ARCHITECTURES[self._kind]],
            "is_encoder_decoder": True,
            "d_model": model.d_model,
            **vocabulary,
            **self._symbol_ids(),
        }
        if model.moe is not None:
            common |= moe_settings(self._kind, self._config, model)
        if self._kind in ("t5", "mt5", SWITCH):
            return common | self._t5_settings()
        return common | {
            "encoder_layers": model.encoder_layers,
            "decoder_layers": model.decoder_layers,
            "encoder_attention_heads": model.num_heads,
            "decoder_attention_heads": model.num_heads,
            "encoder_ffn_dim": model.ffn_dim,
            "decoder_ffn_dim": model.ffn_dim,
            "activation_function": _PLAIN.get(model.activation, model.activation),
            "max_position_embeddings": model.max_positions,
            "scale_embedding": model.embedding_scale,
            "dropout": model.dropout,
            "attention_dropout": model.attention_dropout,
            "activation_dropout": model.activation_dropout,
            "tie_word_embeddings": not is_sided,
            "forced_eos_token_id": common["eos_token_id"],
        }

    def _symbol_ids(self) -> dict[str, Any]:
        if self._origin.kind is not None:
            return self._origin.symbol_ids()
        return _symbol_ids(self._tokenizers.symbols)

    def _t5_settings(self) -> dict[str, Any]:
        model = self._model
        positions = vars(model.positions)
        names = _PLAIN | _GATES
        is_tied = model.share_embeddings == "all"
        is_scaled = self._origin.settings.get("scale_decoder_outputs", is_tied)
        function = "dense_act_fn" if self._kind == SWITCH else "feed_forward_proj"
        return {
            "num_layers": model.encoder_layers,
            "num_decoder_layers": model.decoder_layers,
            "num_heads": model.num_heads,
            "d_kv": model.head_width(model.d_model),
            "d_ff": model.ffn_dim,
            function: names.get(model.activation, model.activation),
            "layer_norm_epsilon": model.norm.eps,
            "relative_attention_num_buckets": positions["num_buckets"],
            "relative_attention_max_distance": positions["max_distance"],
            "dropout_rate": model.dropout,
            "tie_word_embeddings": is_tied,
            "scale_decoder_outputs": is_scaled,
        }

    def _described(self) -> Described:
        """Read the settings back, and refuse a model that they do not describe."""
        facts = Facts(
            has_output=not self._model.shares_output,
            has_bias=self._model.output_bias,
            has_positions=self._model.positions.name == "learned",
        )
        where = f"--format hf, as {self._kind}"
        tables = (SOURCE_TABLE, TARGET_TABLE, OUTPUT_TABLE)
        described = describe(self._settings, facts, tables, where)
        found = TransformerConfig.model_validate(
            {"max_positions": self._model.max_positions, **described.section}
        )
        for name in TransformerConfig.model_fields:
            own, other = getattr(self._model, name), getattr(found, name)
            if name not in _IN_TRAINING_ONLY | _SPELLINGS | _COMPARED_OTHERWISE and own != other:
                raise UserError(
                    f"model.{name}: transformers has no encoder-decoder with {_shown(own)} here "
                    f"({self._kind} has {_shown(other)}); use another --format"
                )
        check_experts(self._kind, self._model, found)
        return described

    def _stored_positions(self, model: Seq2SeqTransformer) -> dict[str, Tensor]:
        """Return tables of positions that a family computes, or may have stored."""
        if self._kind not in ("marian", "pegasus", FSMT):
            return {}
        tables = {}
        for stack in ("encoder", "decoder"):
            rows = cast(Stack, model.get_submodule(stack)).positions
            assert rows is not None, "checked by `_WITH_POSITIONS`"
            count, width = self._model.max_positions, self._model.d_model
            with torch.no_grad():
                table = rows(torch.zeros(1, count, width), 0, count)[0]
            if self._kind == FSMT:  # its positions count from 2
                table = torch.cat([table.new_zeros(2, width), table])
            tables[_POSITIONS.format(stack)] = table
        return tables

    def _generation(self) -> dict[str, Any]:
        settings, ids = self._config.generation, self._symbol_ids()
        return {
            "num_beams": settings.beam,
            "length_penalty": settings.length_penalty,
            "no_repeat_ngram_size": settings.no_repeat_ngram,
            "max_length": min(self._model.max_positions, 512),
            "early_stopping": True,
            "forced_eos_token_id": ids["eos_token_id"],
            **ids,
            **({"bad_words_ids": [[ids["pad_token_id"]]]} if self._kind == "marian" else {}),
        }


def _family(model: TransformerConfig, origin: str | None) -> str:
    """Return the family of a model: that of its folder, unless it has got or lost experts."""
    has_experts = origin in (NLLB_MOE, SWITCH)
    return origin if origin and has_experts == (model.moe is not None) else _kind(model)


def _kind(model: TransformerConfig) -> str:
    """Return the family whose models are like this one."""
    positions = model.positions.name
    if model.norm.name == "rms" or positions == "buckets":
        return "t5" if model.moe is None else SWITCH
    if model.moe is not None:
        return NLLB_MOE
    if model.embedding_norm:
        return "mbart" if model.normalizes_first else "bart"
    if not model.normalizes_first:
        return "marian"
    offset = vars(model.positions).get("offset")
    waves = vars(model.positions).get("wavelengths")
    return "m2m_100" if (offset, waves) == (2, "inclusive") else "pegasus"


def _turned_around(names: Names, ours: Mapping[str, Tensor], orders: Orders) -> dict[str, Tensor]:
    """Return the tensors of theirs that ours are made of."""
    theirs = {}
    for name, parts in names.items():
        if name not in ours:
            raise UserError(f"--format hf: the model has no {name}, which the family needs")
        # the parts of one of our matrices are equally tall
        for part, rows in zip(parts, ours[name].float().chunk(len(parts)), strict=True):
            value = part.theirs(rows)
            if part.is_table:  # two ids have traded places, so the order is its own inverse
                value = value[list(orders.source if part.is_source else orders.target)]
            is_bias = part.is_table and value.dim() == 1
            theirs[part.name] = value.unsqueeze(0) if is_bias else value
    unused = ours.keys() - names.keys()
    if unused:
        raise UserError(f"--format hf: transformers has no place for {', '.join(sorted(unused))}")
    return theirs


def _symbol_ids(symbols: Symbols) -> dict[str, Any]:
    return {
        "pad_token_id": symbols.pad,
        "eos_token_id": symbols.eos,
        "bos_token_id": symbols.bos,
        "decoder_start_token_id": symbols.start,
    }


def _shown(value: Any) -> str:
    if isinstance(value, Config) and not isinstance(value, NamedConfig):
        return "such a section"
    return str(vars(value)["name"] if isinstance(value, NamedConfig) else value)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
