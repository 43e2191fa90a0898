"""Write a vocabulary so that transformers reads text as ds_seq does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sentencepiece.sentencepiece_model_pb2 import ModelProto

from ds_seq.errors import UserError
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.text.tokenizer import SPACE, Tokenizers, piece_ids

_CLASS = "PreTrainedTokenizerFast"


def save_vocabulary(
    tokenizers: Tokenizers, folder: Path, kind: str, languages: tuple[str, str]
) -> None:
    """Write `tokenizer.json` and its settings; for Marian, the files of its own tokenizer.

    Args:
        tokenizers: both sides, with one vocabulary.
        folder: existing folder.
        kind: `model_type` of the folder.
        languages: language codes of source and target.

    Raises:
        UserError: the vocabulary is not a SentencePiece model, or tokenizers is not installed.
    """
    tokenizer = tokenizers.target
    if not isinstance(tokenizer, SentencePieceTokenizer):
        raise UserError(
            "data.vocab.name: only a vocabulary of sentencepiece is written for transformers; use "
            "another --format"
        )
    settings: dict[str, Any] = {
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "source_lang": languages[0],
        "target_lang": languages[1],
    }
    if kind == "marian":
        _write_marian(tokenizer, folder)
        settings["tokenizer_class"] = "MarianTokenizer"
        del settings["bos_token"]
    else:
        (folder / "tokenizer.json").write_text(_fast(tokenizer), encoding="utf-8")
        settings["tokenizer_class"] = _CLASS
    content = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    (folder / "tokenizer_config.json").write_text(content, encoding="utf-8")


def _write_marian(tokenizer: SentencePieceTokenizer, folder: Path) -> None:
    ids = piece_ids(tokenizer)
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    for side in ("source", "target"):
        (folder / f"{side}.spm").write_bytes(tokenizer.to_bytes())


def _fast(tokenizer: SentencePieceTokenizer) -> str:
    """Return the `tokenizer.json` of a SentencePiece model."""
    try:
        from tokenizers import (
            AddedToken,
            Regex,
            Tokenizer,
            decoders,
            models,
            normalizers,
            pre_tokenizers,
            processors,
        )
    except ImportError:
        raise UserError(
            "--format hf: needs the package tokenizers; install it with `pip install tokenizers`"
        ) from None
    proto = ModelProto.FromString(tokenizer.to_bytes())
    symbols, has_bytes = tokenizer.symbols, proto.trainer_spec.byte_fallback
    scores = [(piece.piece, piece.score) for piece in proto.pieces]
    if proto.trainer_spec.model_type == proto.trainer_spec.UNIGRAM:
        fast = Tokenizer(models.Unigram(scores, symbols.unk, has_bytes))
    else:
        ids = {piece: number for number, (piece, _) in enumerate(scores)}
        options = {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": has_bytes}
        fast = Tokenizer(models.BPE(ids, _merges(dict(scores)), **options))
    steps: list[Any] = []
    if proto.normalizer_spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap))
    steps += [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    fast.normalizer = normalizers.Sequence(steps)
    fast.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    fast.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always")
    special = [symbols.unk, symbols.pad, symbols.eos, symbols.bos]
    names = tokenizer.pieces([number for number in special if number is not None])
    fast.add_special_tokens([AddedToken(name, special=True) for name in dict.fromkeys(names)])
    tags = tokenizer.pieces(sorted(tokenizer.tag_ids))
    fast.add_tokens([AddedToken(tag, normalized=False, rstrip=True) for tag in tags])
    eos = tokenizer.pieces([symbols.eos])[0]
    fast.post_processor = processors.TemplateProcessing(
        single=f"$A {eos}", special_tokens=[(eos, symbols.eos)]
    )
    return str(fast.to_str())


def _merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return the merges of a BPE model, which SentencePiece stores as pieces by priority.

    A piece may be made of any two pieces; the most frequent pieces are merged first.
    """
    order = {piece: number for number, piece in enumerate(scores)}
    found = []
    for piece, score in scores.items():
        halves = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        pairs = [pair for pair in halves if pair[0] in order and pair[1] in order]
        found += [(-score, order[left], order[right], (left, right)) for left, right in pairs]
    return [pair for *_, pair in sorted(found)]
