"""`ds-seq import`: make a run folder of a checkpoint of another toolkit.

    ds-seq import fairseq checkpoint_best.pt --dict dict.en.txt --out runs/x
    ds-seq import huggingface models/nllb --source-lang en --target-lang de --out runs/y

See `ds_seq.runs.formats.fairseq` and `ds_seq.runs.formats.huggingface`.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import torch

from ds_seq.commands.arguments.import_model import parse
from ds_seq.errors import UserError
from ds_seq.names import EXPORT_SUFFIX
from ds_seq.runs.export import check_new, write_export, write_link
from ds_seq.runs.formats.imported import Entry, Imported
from ds_seq.runs.open import DTYPES, load_run

if TYPE_CHECKING:
    from ds_seq.runs.formats.huggingface.importing import Languages

_MOST_LINES = 16


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq import`; return the exit code."""
    options = parse(argv)
    check_new(options.out)
    _check_files(options)
    if options.link:
        return _link(options)
    result = _IMPORTS[options.toolkit](options)
    result.model.to(DTYPES[options.dtype])
    path = write_export(result.model, result.config, result.tokenizers, options.out)
    _check_written(options, result)
    print("\n".join(_table(result.entries)))
    total = sum(p.numel() for p in result.model.parameters())
    trained = "" if result.updates is None else f", trained for {result.updates:,} updates"
    print(f"\nparameters  {total:,}{trained}")
    _print_compared(result)
    print(f"{path}: {path.stat().st_size / 1e6:,.1f} MB")
    return 0


def _link(options: argparse.Namespace) -> int:
    """Write config and vocabulary only; the weights are read, and compared, where they are."""
    from ds_seq.runs.formats.huggingface.importing import read_folder

    if options.out.suffix == EXPORT_SUFFIX:
        raise UserError(
            f"--out {options.out}: --link makes a folder; name it without {EXPORT_SUFFIX}"
        )
    compared = None if options.no_compare else _of_huggingface(options)
    read = read_folder(options.model, _name(options), _languages(options))
    path = write_link(read.config, read.tokenizers, options.model, options.out)
    print("\n".join(_table(read.entries)))
    print(f"\nparameters  {read.source.num_values():,}")
    if compared is not None:
        _print_compared(compared)
    print(f"{path}: the weights stay in {options.model}")
    return 0


def _print_compared(result: Imported) -> None:
    if result.difference is not None:
        print(
            f"compared    {result.num_compared:,} logits, which differ by at most "
            f"{result.difference:.1e}"
        )


def _check_files(options: argparse.Namespace) -> None:
    """Check that files which an option names are there."""
    for name in ("dict", "target_dict", "codes", "sentencepiece", "lang_dict"):
        path = vars(options)[name]
        if path is not None and not path.is_file():
            raise UserError(f"--{name.replace('_', '-')} {path}: no such file; correct the path")


def _of_fairseq(options: argparse.Namespace) -> Imported:
    from ds_seq.runs.formats.fairseq.experiments import Vocabulary
    from ds_seq.runs.formats.fairseq.importing import import_checkpoint
    from ds_seq.runs.formats.fairseq.weights import Weights

    vocabulary = Vocabulary(
        options.dict,
        options.target_dict,
        options.codes,
        options.sentencepiece,
        options.moses,
        options.lang_dict,
        [symbol for symbol in (options.user_symbols or "").split(",") if symbol],
    )
    languages = (options.source_lang, options.target_lang)
    weights = Weights(options.ema, options.average or ())
    name, lines = _name(options), _lines(options)
    return import_checkpoint(options.model, vocabulary, name, languages, lines, weights)


def _of_huggingface(options: argparse.Namespace) -> Imported:
    from ds_seq.runs.formats.huggingface.comparison import compare, sample_lines
    from ds_seq.runs.formats.huggingface.importing import import_folder

    result = import_folder(options.model, _name(options), _languages(options))
    if options.no_compare:
        return result
    lines = _lines(options) or sample_lines(result.tokenizers)
    found = compare(options.model, result.model, result.tokenizers, lines)
    return replace(result, difference=found.difference, num_compared=found.num_logits)


def _languages(options: argparse.Namespace) -> Languages:
    from ds_seq.runs.formats.huggingface.importing import Languages

    return Languages(
        options.source_lang,
        options.target_lang,
        options.source_code,
        options.target_code,
        options.source_prefix,
    )


_IMPORTS = {"fairseq": _of_fairseq, "huggingface": _of_huggingface}


def _name(options: argparse.Namespace) -> str:
    name = re.sub(r"[^\w.+-]", "-", options.out.stem if options.out.suffix else options.out.name)
    return name.strip(".") or "imported"


def _lines(options: argparse.Namespace) -> list[str]:
    if options.text is None:
        return []
    try:
        with options.text.open(encoding="utf-8") as file:
            lines = [line.rstrip("\n") for line in islice(file, _MOST_LINES)]
    except OSError as error:
        raise UserError(f"--text {options.text}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"--text {options.text}: is not UTF-8; convert it") from None
    if not any(line.strip() for line in lines):
        raise UserError(f"--text {options.text}: has no text in its first lines")
    return lines


def _check_written(options: argparse.Namespace, result: Imported) -> None:
    """Read the output back, and compare it with the model that was compared."""
    loaded = load_run(options.out, "best", dtype=DTYPES[options.dtype])
    pairs = zip(loaded.model.parameters(), result.model.parameters(), strict=True)
    if not all(torch.equal(read, made) for read, made in pairs):
        raise UserError(f"{options.out}: does not read back as it was written; check the disk")


def _table(entries: Sequence[Entry]) -> Iterator[str]:
    """Yield one line per tensor, and how many there are of each kind."""
    width = max(len(entry.theirs) for entry in entries)
    for entry in entries:
        note = f"  ({entry.note})" if entry.note else ""
        yield f"{entry.how:8} {entry.theirs:<{width}}  {entry.ours}{note}".rstrip()
    counts = Counter(entry.how for entry in entries)
    kinds = ("taken", "renamed", "joined", "left")
    yield f"\ntensors     {', '.join(f'{counts[kind]} {kind}' for kind in kinds)}, 0 missing"
