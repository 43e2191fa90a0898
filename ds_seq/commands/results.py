"""`ds-seq generate --results FILE`: scores of evaluations, collected in a JSON file.

The file maps each text to its evaluations in their order; a later evaluation is appended. Texts
are named as the input is, or `data.raw.test` for that of the experiment.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ds_seq
from ds_seq import files
from ds_seq.environment import source_commit
from ds_seq.records import read_json
from ds_seq.scores.scoring import CorpusScore
from ds_seq.text.lines import check_writable

_PATIENCE = 30.0  # seconds for which another evaluation may hold the file

Results = dict[str, list[dict[str, Any]]]
"""Evaluations by text."""


def check_results(path: str, inputs: Sequence[str | None]) -> None:
    """Check before an evaluation that its result can be added to a file.

    Args:
        path: the file; it may exist.
        inputs: files and folders of the evaluation.

    Raises:
        UserError: the file cannot be written, is one of `inputs`, or is no file of results.
    """
    check_writable(path, inputs)
    _read(Path(path))


def add_result(path: str, text: str, scores: Sequence[CorpusScore], facts: dict[str, Any]) -> None:
    """Append an evaluation to a file of results; the file is the old or the new one at any time.

    Args:
        path: the file; it may exist.
        text: name of the text.
        scores: scores of the translation, stored with their signatures and, if they were
            computed, the mean over resamples and half the width of its 95% interval.
        facts: what else to store.

    Raises:
        UserError: the file cannot be written, or is no file of results.
    """
    values: dict[str, Any] = {}
    for score in scores:
        values |= {score.name: score.value, f"{score.name}_signature": score.signature}
        if score.ci is not None:
            values |= {f"{score.name}_mean": score.mean, f"{score.name}_ci": score.ci}
    versions = {"ds_seq": ds_seq.__version__, "commit": source_commit()}
    entry = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **values, **facts, **versions}
    file = Path(path)
    lock = files.lock_of(file)
    until = time.monotonic() + _PATIENCE
    while files.is_locked(lock) and time.monotonic() < until:
        time.sleep(0.1)
    with files.Lock(lock, file, "try again later, or give another name"):
        results = _read(file)
        results.setdefault(text, []).append(entry)
        files.write_json(file, results)


def _read(path: Path) -> Results:
    try:
        return read_json(path, Results, "give another name to --results")
    except FileNotFoundError:
        return {}
