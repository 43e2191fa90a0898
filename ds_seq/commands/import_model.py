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
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ds_seq.commands.arguments.import_model import parse
from ds_seq.errors import UserError
from ds_seq.names import EXPORT_SUFFIX, Precision
from ds_seq.runs.export import check_new, write_export, write_link
from ds_seq.runs.formats.imported import Entry, Imported
from ds_seq.runs.open import DTYPES, load_run

if TYPE_CHECKING:
    from ds_seq.runs.formats.fairseq.experiments import Vocabulary
    from ds_seq.runs.formats.fairseq.weights import Weights
    from ds_seq.runs.formats.huggingface.importing import Languages

_MOST_LINES = 16


@dataclass(frozen=True)
class ImportedRun:
    """A run folder that was made of another toolkit's checkpoint.

    Attributes:
        path: weights file; of a linked run, its folder.
        entries: what became of each tensor of theirs.
        num_parameters: number of parameters.
        difference: largest difference of a logit from what theirs computes; None if it was not
            compared.
        num_compared: number of logits that were compared.
        updates: number of updates of its training, if that is known.
    """

    path: Path
    entries: list[Entry]
    num_parameters: int
    difference: float | None
    num_compared: int
    updates: int | None


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq import`; return the exit code."""
    options = parse(argv)
    check_new(options.out)
    _check_files(options)
    found = _of_fairseq(options) if options.toolkit == "fairseq" else _of_huggingface(options)
    print("\n".join(_table(found.entries)))
    trained = "" if found.updates is None else f", trained for {found.updates:,} updates"
    print(f"\nparameters  {found.num_parameters:,}{trained}")
    _print_compared(found)
    if options.link:
        print(f"{found.path}: the weights stay in {options.model}")
    else:
        print(f"{found.path}: {found.path.stat().st_size / 1e6:,.1f} MB")
    return 0


def import_fairseq(
    checkpoint: str | Path,
    out: str | Path,
    vocabulary: Vocabulary,
    *,
    languages: tuple[str | None, str | None] = (None, None),
    lines: Sequence[str] = (),
    weights: Weights | None = None,
    dtype: Precision = "fp32",
) -> ImportedRun:
    """Make a run folder of a checkpoint of fairseq, like `ds-seq import fairseq`.

    No code in the checkpoint runs, and fairseq is not needed.

    Args:
        checkpoint: file such as `checkpoint_best.pt`.
        out: new run folder, or file whose name ends in `.safetensors`.
        vocabulary: dictionaries and subwords.
        languages: codes of source and target; None: those of the checkpoint.
        lines: lines of source text to compare on; none: pieces of the vocabulary.
        weights: stored averages, or more checkpoints to average with; None: the weights.
        dtype: number format of the weights.

    Raises:
        UserError: `out` exists, a file is missing, or the model has a part that ds_seq does not.
    """
    from ds_seq.runs.formats.fairseq.importing import import_checkpoint
    from ds_seq.runs.formats.fairseq.weights import Weights

    out = Path(out)
    check_new(out)
    chosen = weights or Weights()
    name = _name(out)
    result = import_checkpoint(Path(checkpoint), vocabulary, name, languages, list(lines), chosen)
    return _written(result, out, dtype)


def import_huggingface(
    folder: str | Path,
    out: str | Path,
    *,
    languages: Languages | None = None,
    lines: Sequence[str] = (),
    compare: bool = True,
    link: bool = False,
    dtype: Precision = "fp32",
) -> ImportedRun:
    """Make a run folder of a folder of Hugging Face, like `ds-seq import huggingface`.

    Args:
        folder: folder of `save_pretrained`, with model and tokenizer.
        out: new run folder, or file whose name ends in `.safetensors`.
        languages: languages of source and target, and a prefix; None: those of the folder.
        lines: lines of source text to compare on; none: pieces of the vocabulary.
        compare: whether to compare with what transformers computes, which must be installed.
        link: whether to leave the weights in `folder`, and write config and vocabulary only.
        dtype: number format of the weights.

    Raises:
        UserError: `out` exists, or the folder is incomplete or has a part that ds_seq does not.
    """
    from ds_seq.runs.formats.huggingface.comparison import compare as compare_models
    from ds_seq.runs.formats.huggingface.comparison import sample_lines
    from ds_seq.runs.formats.huggingface.importing import Languages, import_folder, read_folder

    folder, out = Path(folder), Path(out)
    check_new(out)
    if link and out.suffix == EXPORT_SUFFIX:
        raise UserError(f"--out {out}: --link makes a folder; name it without {EXPORT_SUFFIX}")
    spoken = languages or Languages()
    result = None
    if compare or not link:
        result = import_folder(folder, _name(out), spoken)
    if compare and result is not None:
        text = list(lines) or sample_lines(result.tokenizers)
        found = compare_models(folder, result.model, result.tokenizers, text)
        result = replace(result, difference=found.difference, num_compared=found.num_logits)
    if result is not None and not link:
        return _written(result, out, dtype)
    read = read_folder(folder, _name(out), spoken)
    path = write_link(read.config, read.tokenizers, folder, out)
    compared = (None, 0) if result is None else (result.difference, result.num_compared)
    return ImportedRun(path, list(read.entries), read.source.num_values(), *compared, None)


def _written(result: Imported, out: Path, dtype: Precision) -> ImportedRun:
    """Write a model, read it back, and compare it with the one that was compared."""
    result.model.to(DTYPES[dtype])
    path = write_export(result.model, result.config, result.tokenizers, out)
    loaded = load_run(out, "best", dtype=DTYPES[dtype])
    pairs = zip(loaded.model.parameters(), result.model.parameters(), strict=True)
    if not all(torch.equal(read, made) for read, made in pairs):
        raise UserError(f"{out}: does not read back as it was written; check the disk")
    total = sum(p.numel() for p in result.model.parameters())
    compared = result.difference, result.num_compared
    return ImportedRun(path, list(result.entries), total, *compared, result.updates)


def _print_compared(result: ImportedRun) -> None:
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


def _of_fairseq(options: argparse.Namespace) -> ImportedRun:
    from ds_seq.runs.formats.fairseq.experiments import Vocabulary
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
    return import_fairseq(
        options.model,
        options.out,
        vocabulary,
        languages=(options.source_lang, options.target_lang),
        lines=_lines(options),
        weights=Weights(options.ema, options.average or ()),
        dtype=options.dtype,
    )


def _of_huggingface(options: argparse.Namespace) -> ImportedRun:
    return import_huggingface(
        options.model,
        options.out,
        languages=_languages(options),
        lines=[] if options.no_compare else _lines(options),
        compare=not options.no_compare,
        link=options.link,
        dtype=options.dtype,
    )


def _languages(options: argparse.Namespace) -> Languages:
    from ds_seq.runs.formats.huggingface.importing import Languages

    return Languages(
        options.source_lang,
        options.target_lang,
        options.source_code,
        options.target_code,
        options.source_prefix,
    )


def _name(out: Path) -> str:
    name = re.sub(r"[^\w.+-]", "-", out.stem if out.suffix else out.name)
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


def _table(entries: Sequence[Entry]) -> Iterator[str]:
    """Yield one line per tensor, and how many there are of each kind."""
    width = max(len(entry.theirs) for entry in entries)
    for entry in entries:
        note = f"  ({entry.note})" if entry.note else ""
        yield f"{entry.how:8} {entry.theirs:<{width}}  {entry.ours}{note}".rstrip()
    counts = Counter(entry.how for entry in entries)
    kinds = ("taken", "renamed", "joined", "left")
    yield f"\ntensors     {', '.join(f'{counts[kind]} {kind}' for kind in kinds)}, 0 missing"
