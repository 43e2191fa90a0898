"""The section `data` of a command of fairseq, and the text of its validation data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ds_seq.compat.fairseq.command import Given
from ds_seq.compat.fairseq.convolutions import FIRST_ROW, is_gated
from ds_seq.compat.fairseq.language_models import LM_TASK
from ds_seq.compat.fairseq.masked_models import WITH_MASK
from ds_seq.compat.fairseq.noise import NOISY, is_noisy
from ds_seq.compat.fairseq.refusals import Refusals
from ds_seq.data.fairseq import find_parts
from ds_seq.data.fairseq_files import IndexedFile
from ds_seq.errors import UserError
from ds_seq.names import SPECIAL_PIECES
from ds_seq.text.fairseq_dict import Dictionary
from ds_seq.text.vocab_file import read_vocab_file

UNKNOWN_LANGUAGE = "und"
"""Code of ISO 639 for text whose language nobody has named: fairseq does not."""
_SOURCE_TAG = "__src__"
_SPLITS_WITH_CODES = ("subword_nmt", "fastbpe")
_PIECES = "sentencepiece"


class Sides(NamedTuple):
    """What the data folder says.

    Attributes:
        folders: the folders with the data.
        languages: language codes of source and target.
        dictionaries: the dictionaries of both, if the folder is here.
        is_text: whether there is text of one side, which has one dictionary.
    """

    folders: list[str]
    languages: tuple[str, str]
    dictionaries: tuple[Dictionary, Dictionary] | None
    is_text: bool = False

    @property
    def paths(self) -> tuple[str, str]:
        """Paths of the dictionaries."""
        if self.is_text:
            return (f"{self.folders[0]}/dict.txt",) * 2
        first, second = (f"{self.folders[0]}/dict.{code}.txt" for code in self.languages)
        return first, second


def find_sides(given: Given) -> Sides:
    """Return what the command and the data folder say about the two sides.

    Raises:
        UserError: there is no folder, no language, or a dictionary is damaged.
    """
    folders = [folder for folder in given.data.split(":") if folder]
    if not folders:
        raise UserError(
            "from-fairseq: the folder with the data is missing; give the whole command, such as "
            "fairseq-train data-bin/x --arch transformer ..."
        )
    languages = (given["source_lang"], given["target_lang"])
    is_text = given["task"] in (LM_TASK, *NOISY)
    if is_text:
        languages = (UNKNOWN_LANGUAGE,) * 2
    elif None in languages:
        languages = _languages(Path(folders[0]))
    sides = Sides(folders, languages, None, is_text)
    if not all(Path(path).is_file() for path in sides.paths):
        return sides
    first, second = (Dictionary.parse(read_vocab_file(path), path) for path in sides.paths)
    return sides._replace(dictionaries=(first, second))


def _languages(folder: Path) -> tuple[str, str]:
    """Return the languages in the names of the files, as fairseq finds them."""
    for path in sorted(folder.glob("train.*-*.*.idx")):
        match = re.fullmatch(r"train\.([^.-]+)-([^.-]+)\.([^.]+)\.idx", path.name)
        if match and match[3] in (match[1], match[2]):
            return match[1], match[2]
    raise UserError(
        f"from-fairseq: {folder}: no train.SRC-TGT.SRC.idx there to find the languages by; add "
        "--source-lang and --target-lang"
    )


def data_section(
    given: Given, name: str, sides: Sides, refusals: Refusals, notes: list[str]
) -> dict[str, Any]:
    """Return the section `data`.

    Args:
        given: the arguments.
        name: name of the run.
        sides: result of `find_sides`.
        refusals: gets what cannot be translated.
        notes: gets what a user should know.
    """
    if len(sides.folders) > 1:
        notes.append("all folders are one epoch here; fairseq reads one in each epoch")
    if given["train_subset"] != "train" or not given["valid_subset"].startswith("valid"):
        refusals.add(
            "--train-subset, --valid-subset: splits have the names train and valid; rename the "
            "files"
        )
    if sides.is_text:
        notes.append("data.language: fairseq does not name it; set it")
        return {
            "language": UNKNOWN_LANGUAGE,
            "dir": f"data/{name}",
            "source": {"name": "fairseq", "folders": sides.folders},
            "vocab": _vocab(given, sides, refusals, notes),
        }
    most = given["max_tokens"]
    unused = FIRST_ROW if is_gated(given) else 0
    limits = [given[f"max_{side}_positions"] - unused for side in ("source", "target")]
    source, target = (limit if most is None else min(limit, most) for limit in limits)
    if [source, target] != limits:
        notes.append(
            f"data.max_source_length, data.max_target_length: pairs that are longer than "
            f"--max-tokens {most} are left out; fairseq stops at one"
        )
    section: dict[str, Any] = {
        "source_lang": sides.languages[0],
        "target_lang": sides.languages[1],
        "dir": f"data/{name}",
        "source": {"name": "fairseq", "folders": sides.folders},
        "max_source_length": source,
        "max_target_length": target,
        "vocab": _vocab(given, sides, refusals, notes),
    }
    if given["truncate_source"]:
        section["long_pairs"] = "truncate_source"
    tags = _tags(given, sides)
    if given["kd_strategy"] == "global_language_wise" and not tags:
        refusals.add(
            "--kd-strategy global_language_wise: there is no symbol that begins with "
            f"{_SOURCE_TAG} in {sides.paths[0]}; name the language tags by --kd-language-tags"
        )
    if tags:
        section["language_tags"] = tags
        vocab = section["vocab"]
        side = vocab if "fairseq" in vocab else vocab["source"]
        side["user_symbols"] = tags
    return section


def _vocab(given: Given, sides: Sides, refusals: Refusals, notes: list[str]) -> dict[str, Any]:
    parts = [_part(given, path, refusals) for path in sides.paths]
    if is_noisy(given):
        parts[0]["fairseq"] |= WITH_MASK
    added = parts[0]["fairseq"].get("added_symbols", [])
    if sides.dictionaries is None:
        count = len(SPECIAL_PIECES) + len(added)
        notes.append(
            f"{sides.paths[0]} is not here: set data.vocab.size to its number of lines + {count}"
        )
        joint = sides.is_text or given["share_all_embeddings"]
        sizes: list[dict[str, int]] = [{}, {}]
    else:
        first, second = sides.dictionaries
        joint = first.symbols == second.symbols
        sizes = [{"size": len(each.extended(added))} for each in (first, second)]
    if given["eval_bleu_remove_bpe"] is not None and len(parts[0]["fairseq"]) == 1:
        notes.append(
            "--eval-bleu-remove-bpe: add --bpe subword_nmt --bpe-codes FILE (or --bpe "
            "sentencepiece --sentencepiece-model FILE) to the command; until then, symbols are "
            "words, and BLEU is that of pieces"
        )
    if joint:
        return {"name": "fairseq_dict", **sizes[0], **parts[0]}
    return {
        "name": "fairseq_dict",
        "source": {**sizes[0], **parts[0]},
        "target": {**sizes[1], **parts[1]},
    }


def _part(given: Given, dictionary: str, refusals: Refusals) -> dict[str, Any]:
    """Return how one side is split."""
    files: dict[str, Any] = {"dictionary": dictionary}
    kind = given["bpe"]
    if kind is None and given["bpe_codes"]:
        kind = _SPLITS_WITH_CODES[0]
    if kind is None and given["sentencepiece_model"]:
        kind = _PIECES
    if kind in _SPLITS_WITH_CODES:
        if not given["bpe_codes"]:
            refusals.add(f"--bpe {kind}: --bpe-codes is missing")
        files["codes"] = given["bpe_codes"]
    elif kind == _PIECES:
        if not given["sentencepiece_model"]:
            refusals.add(f"--bpe {kind}: --sentencepiece-model is missing")
        files["sentencepiece"] = given["sentencepiece_model"]
    elif kind is not None:
        known = ", ".join((*_SPLITS_WITH_CODES, _PIECES))
        refusals.add(f"--bpe {kind}: not supported; there are {known}")
    tokenizer = given["tokenizer"]
    if tokenizer not in (None, "moses", "space"):
        refusals.add(f"--tokenizer {tokenizer}: not supported; there are moses and space")
    # without pieces there is nothing to join before Moses' rules could be undone
    detokenizes = given["eval_bleu"] and given["eval_bleu_detok"] == "moses" and len(files) > 1
    if tokenizer == "moses" or detokenizes:
        files["moses"] = True
    return {"fairseq": files}


def _tags(given: Given, sides: Sides) -> list[str]:
    """Return the language tags by which a criterion selects tokens."""
    if given["kd_language_tags"]:
        return [tag.strip() for tag in given["kd_language_tags"].split(",") if tag.strip()]
    if given["kd_strategy"] != "global_language_wise" or sides.dictionaries is None:
        return []
    return [symbol for symbol in sides.dictionaries[0].symbols if symbol.startswith(_SOURCE_TAG)]


def held_out_text(sides: Sides, pieces: Sequence[str]) -> tuple[list[str], list[str]] | None:
    """Return the validation text that is in the data folder, one line for each sentence.

    fairseq compares translations with it. Pieces are joined to words.

    Args:
        sides: result of `find_sides`.
        pieces: how words were split: `@@ ` or `sentencepiece`; empty: not at all.

    Returns:
        Source and target lines; None if the folder has no validation data.

    Raises:
        UserError: a file is damaged.
    """
    if sides.dictionaries is None:
        return None
    try:
        prefix = find_parts([Path(sides.folders[0])], "valid", sides.languages)[0]
    except UserError:
        return None
    texts = []
    for language, dictionary in zip(sides.languages, sides.dictionaries, strict=True):
        file = IndexedFile(prefix.with_name(f"{prefix.name}.{language}"))
        tokens, lengths = file.gather(np.arange(len(file)))
        symbols = np.array(dictionary.symbols, dtype=object)[tokens]
        ends = lengths.cumsum()
        lines = [
            " ".join(s for s in symbols[end - length : end] if s != "</s>")
            for end, length in zip(ends, lengths, strict=True)
        ]
        texts.append([_joined(line, pieces) for line in lines])
    return texts[0], texts[1]


def _joined(line: str, pieces: Sequence[str]) -> str:
    if _PIECES in pieces:
        return line.replace(" ", "").replace("\u2581", " ").strip()
    if "@@ " in pieces:
        return f"{line} ".replace("@@ ", "").rstrip()
    return line
