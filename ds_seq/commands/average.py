"""`ds-seq average`: average several checkpoints into one model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ds_seq.commands.arguments.average import build_parser
from ds_seq.errors import UserError
from ds_seq.names import Precision
from ds_seq.runs.average import NOTE_KEY, AveragedModel, average, listed_models, named_model
from ds_seq.runs.export import check_new, write_export
from ds_seq.runs.open import DTYPES
from ds_seq.weights.meta import CHECKPOINTS, INDEX_FILE


@dataclass(frozen=True)
class Averaged:
    """A mean of models that was written.

    Attributes:
        path: its weights file.
        parts: what was averaged.
    """

    path: Path
    parts: list[AveragedModel]


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq average`; return the exit code."""
    args = build_parser().parse_intermixed_args(argv)
    chosen = {"last": args.last, "best": args.best, "until": args.until}
    done = average_models(args.models, args.out, **chosen, dtype=args.dtype)
    print("\n".join(map(_line, done.parts)))
    print(f"{done.path}: mean of {len(done.parts)}, {done.path.stat().st_size / 1e6:,.1f} MB")
    return 0


def average_models(
    models: Sequence[str | Path] | str | Path,
    out: str | Path,
    *,
    last: int | None = None,
    best: int | None = None,
    until: int | None = None,
    dtype: Precision = "fp32",
) -> Averaged:
    """Write the mean of several checkpoints as one model, like `ds-seq average`.

    Vaswani et al., 2017, "Attention Is All You Need", section 6.1, arXiv:1706.03762; Wortsman et
    al., 2022, "Model soups", arXiv:2203.05482.

    Args:
        models: a run folder, with `last` or `best`; or checkpoints, exports and run folders, of
            which the best checkpoint is used. With `:raw` at the end, no average of `train.ema`.
        out: new file, if its name ends in `.safetensors`, or folder.
        last: average this many of the most recent checkpoints.
        best: average this many of the best checkpoints.
        until: only checkpoints up to this update.
        dtype: number format of the weights.

    Raises:
        UserError: `out` exists, a model is missing or damaged, or they have different model
            sections or vocabularies.
    """
    paths = [Path(model) for model in ([models] if isinstance(models, str | Path) else models)]
    check_new(Path(out))
    if last is not None and best is not None:
        raise UserError("--last, --best: choose one of them")
    parts = _parts(paths, last, best, until)
    model = average([part.run for part in parts]).to(DTYPES[dtype])
    first = parts[0].run
    notes = {NOTE_KEY: _note(parts)}
    path = write_export(model, first.require_experiment(), first.tokenizers, Path(out), notes)
    return Averaged(path, parts)


def _parts(
    models: list[Path], last: int | None, best: int | None, until: int | None
) -> list[AveragedModel]:
    """Return the models to average."""
    which = "last" if last is not None else "best"
    count = last if last is not None else best
    if count is None:
        if until is not None:
            raise UserError("--until: needs --last N or --best N; add one of them")
        if len(models) == 1 and (models[0] / CHECKPOINTS / INDEX_FILE).is_file():
            raise UserError(
                f"{models[0]}: is a run folder; add --last N or --best N to choose checkpoints"
            )
        return [named_model(path) for path in models]
    if len(models) > 1:
        raise UserError(f"--{which}: takes the checkpoints of one run folder, not of {len(models)}")
    return listed_models(models[0], which, count, until)


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
