"""`ds-seq convert-data`: binarized data from fairseq's format to ours, or the other way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ds_seq.commands.arguments.convert_data import build_parser
from ds_seq.config.load import load_experiment
from ds_seq.config.outside import TOKENIZING
from ds_seq.errors import UserError
from ds_seq.tasks.fairseq import from_fairseq, to_fairseq
from ds_seq.text.build import load_tokenizers


def main(argv: Sequence[str]) -> int:
    """Convert the data of an experiment."""
    arguments = build_parser().parse_intermixed_args(argv)
    data = load_experiment(arguments.experiment, arguments.overrides, TOKENIZING).data
    if arguments.from_fairseq is not None:
        source, target = arguments.languages or (data.source_lang, data.target_lang)
        folders = [Path(name) for name in arguments.from_fairseq.split(":")]
        if any(folder.resolve() == Path(data.dir).resolve() for folder in folders):
            raise UserError(f"--from-fairseq {data.dir}: is data.dir, too; give it another folder")
        from_fairseq(data, folders, (source, target))
        return 0
    if arguments.languages is not None:
        raise UserError("--languages: applies to --from-fairseq only; remove it")
    to_fairseq(data, load_tokenizers(data, data.dir), arguments.to_fairseq)
    return 0
