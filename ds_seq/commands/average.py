"""`ds-seq average`: average several checkpoints into one model."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from ds_seq.commands.arguments.average import build_parser
from ds_seq.errors import UserError
from ds_seq.runs.average import NOTE_KEY, AveragedModel, average, listed_models, named_model
from ds_seq.runs.export import check_new, write_export
from ds_seq.runs.open import DTYPES
from ds_seq.weights.meta import CHECKPOINTS, INDEX_FILE


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq average`; return the exit code."""
    options = build_parser().parse_intermixed_args(argv)
    check_new(options.out)
    parts = _parts(options)
    model = average([part.run for part in parts]).to(DTYPES[options.dtype])
    first = parts[0].run
    notes = {NOTE_KEY: _note(parts)}
    path = write_export(model, first.require_experiment(), first.tokenizers, options.out, notes)
    print("\n".join(map(_line, parts)))
    print(f"{path}: mean of {len(parts)}, {path.stat().st_size / 1e6:,.1f} MB")
    return 0


def _parts(options: argparse.Namespace) -> list[AveragedModel]:
    """Return the models to average."""
    models: list[Path] = options.models
    which = "last" if options.last is not None else "best"
    count = options.last if options.last is not None else options.best
    if count is None:
        if options.until is not None:
            raise UserError("--until: needs --last N or --best N; add one of them")
        if len(models) == 1 and (models[0] / CHECKPOINTS / INDEX_FILE).is_file():
            raise UserError(
                f"{models[0]}: is a run folder; add --last N or --best N to choose checkpoints"
            )
        return [named_model(path) for path in models]
    if len(models) > 1:
        raise UserError(f"--{which}: takes the checkpoints of one run folder, not of {len(models)}")
    return listed_models(models[0], which, count, options.until)


def _line(part: AveragedModel) -> str:
    words = [str(part.path)]
    if part.update is not None:
        words.append(f"update {part.update:,}")
    if part.score is not None:
        words.append(f"{part.run.require_experiment().validation.best} {part.score:.4g}")
    return "  ".join(words)


def _note(parts: Sequence[AveragedModel]) -> str:
    return json.dumps(
        [
            {
                "experiment": part.run.card.name,
                "name": part.path.absolute().name,
                "update": part.update,
                "score": part.score,
            }
            for part in parts
        ]
    )
