"""Write vocabularies that were made for fairseq as the files of FSMT, one for each side.

A piece inside a word ends with `@@` in fairseq's dictionaries; in FSMT's, one at its end has
`</w>`. Both sides share the merges.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from ds_seq.errors import UserError
from ds_seq.names import SPECIAL_PIECES
from ds_seq.text.fairseq_tokenizer import FairseqDictTokenizer
from ds_seq.text.huggingface_sides import MERGES, OF_SIDES
from ds_seq.text.merges import CONTINUES, END
from ds_seq.text.tokenizer import Tokenizers

_VERSION = re.compile(r"#version: .*\n")
_COUNT = re.compile(r" \d+$", re.MULTILINE)
_SETTINGS = {
    "tokenizer_class": "FSMTTokenizer",
    "do_lower_case": False,
    "unk_token": "<unk>",
    "bos_token": "<s>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
}


def check_sides(tokenizers: Tokenizers) -> None:
    """Check that FSMT can read both vocabularies.

    Raises:
        UserError: they are of another kind, or FSMT lacks what they do with text.
    """
    where = "data.vocab"
    for tokenizer in tokenizers:
        if not isinstance(tokenizer, FairseqDictTokenizer):
            raise UserError(
                f"{where}.name: of two vocabularies, transformers has only those of FSMT: "
                "name: fairseq_dict with codes and moses: true; use another --format"
            )
        files, where_files = tokenizer.stored, f"{where}.fairseq"
        if "codes" not in files:
            raise UserError(f"{where_files}.codes: is missing, but FSMT splits words by merges")
        if not files["moses"]:
            raise UserError(
                f"{where_files}.moses: false, but FSMT always tokenizes by Moses' rules; use "
                "another --format"
            )
        if tokenizer.tag_ids or files.get("source_opening") or files.get("target_opening"):
            raise UserError(
                f"{where}: user_symbols and symbols in front of texts have no counterpart in FSMT; "
                "use another --format"
            )
        if not tokenizer.marks_ends:
            raise UserError(
                f"{where_files}.codes: are of version 0.1 of subword-nmt, in which the end of a "
                "word is a symbol of its own; FSMT needs codes of 0.2 or of fastBPE"
            )
    if len({_merges(tokenizer) for tokenizer in tokenizers}) > 1:
        raise UserError(
            f"{where}.fairseq.codes: differ between source and target, but FSMT has one list of "
            "merges; use another --format"
        )


def save_sides(tokenizers: Tokenizers, folder: Path, languages: tuple[str, str]) -> None:
    """Write the vocabularies of both sides, the merges and the settings of FSMT's tokenizer.

    Args:
        tokenizers: both sides, as `check_sides` wants them.
        folder: existing folder.
        languages: language codes of source and target.
    """
    for side, tokenizer in zip(("source", "target"), tokenizers, strict=True):
        pieces = map(_piece, tokenizer.pieces(range(len(tokenizer))))
        ids = {piece: number for number, piece in enumerate(pieces)}
        content = json.dumps(ids, ensure_ascii=False, indent=0)
        (folder / OF_SIDES[side]).write_text(content, encoding="utf-8")
    (folder / MERGES).write_text(_merges(tokenizers.source), encoding="utf-8")
    settings = json.dumps({**_SETTINGS, "langs": list(languages)}, indent=2)
    (folder / "tokenizer_config.json").write_text(settings + "\n", encoding="utf-8")


def _piece(symbol: str) -> str:
    """Return a symbol of a fairseq dictionary as FSMT writes it."""
    if symbol in SPECIAL_PIECES:
        return symbol
    return symbol.removesuffix(CONTINUES) if symbol.endswith(CONTINUES) else symbol + END


def _merges(tokenizer: object) -> str:
    """Return the merges without version and counts, one per line."""
    assert isinstance(tokenizer, FairseqDictTokenizer)
    codes = _VERSION.sub("", tokenizer.stored["codes"], count=1)
    return _COUNT.sub("", codes.replace("\r", "")).rstrip("\n") + "\n"
