"""generation.py: half precision compared with single on a GPU, in one process.

Shapes: B sentences.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sacrebleu
import torch
from common import Goal, Section, Spread, table
from plain import batch_limits, beam_search
from turns import take_turns

from ds_seq.data.batch import ParallelDataset
from ds_seq.data.shards import ShardReader
from ds_seq.generation.translate import cut_batches, search_batches
from ds_seq.runs.card import LoadedRun
from ds_seq.runs.open import DTYPES, load_run

BEAM = 5
BLEU_GOAL = 0.1  # allowed change of BLEU
_SINGLE = "fp32"


@dataclass(frozen=True)
class Halving:
    """Settings of the measurement.

    Attributes:
        run: folder of a trained model with shards of its held-out text.
        device: device of the models.
        sentences: number of sentences from the start of the text.
        rounds: maximum number of rounds.
        seconds: time after which no round begins, provided there have been two.
    """

    run: Path
    device: torch.device
    sentences: int
    rounds: int
    seconds: float


def half_section(settings: Halving) -> Section:
    """Measure sentences per second and BLEU of each precision."""
    runs = {
        name: load_run(settings.run, "best", device=settings.device, dtype=dtype)
        for name, dtype in DTYPES.items()
    }
    sources, references = _text(runs[_SINGLE], settings.sentences)
    found: dict[str, list[str]] = {}
    sides = {name: _translation(name, run, sources, settings, found) for name, run in runs.items()}
    rounds = take_turns(sides, settings.rounds, settings.seconds)
    bleu = {name: sacrebleu.corpus_bleu(found[name], [references]).score for name in runs}
    rows = [
        [
            name,
            Spread.of([len(sources) / s for s in rounds.seconds(name)]).text(1),
            Spread.of(rounds.ratios(_SINGLE, name)).text(2),
            f"{bleu[name]:.2f}",
        ]
        for name in runs
    ]
    body = (
        f"{table(['precision', 'sentences/s', 'to fp32', 'BLEU'], rows)}\n\n"
        f"Medians (and extremes) of {rounds.count} rounds: {len(sources)} sentences of "
        f"{statistics.mean(map(len, sources)):.1f} tokens, beam {BEAM}, {_name(settings.device)}."
    )
    goals = [
        Goal(f"change of BLEU, {name}", abs(bleu[name] - bleu[_SINGLE]), BLEU_GOAL, at_least=False)
        for name in runs
        if name != _SINGLE
    ]
    return Section("Half precision", body, goals)


def _text(run: LoadedRun, count: int) -> tuple[list[list[int]], list[str]]:
    """Return sources with their end symbols, and references as text."""
    data = run.require_experiment().data
    reader = ShardReader(
        Path(data.dir), "test" if data.raw.test else "valid", run.tokenizers.fingerprint
    )
    dataset = ParallelDataset(reader, data.max_source_length, data.max_target_length)
    pairs = [reader[int(row)] for row in dataset.rows[:count]]
    return [src.tolist() for src, _ in pairs], [
        run.tokenizers.target.decode(tgt) for _, tgt in pairs
    ]


def _translation(
    name: str,
    run: LoadedRun,
    sources: list[list[int]],
    settings: Halving,
    found: dict[str, list[str]],
) -> Callable[[], None]:
    """Translate all; the translations are in `found[name]` afterwards."""
    search = beam_search(
        run.tokenizers.symbols, beam=BEAM, max_positions=run.model_config.max_positions
    )
    batches = cut_batches(
        np.array([len(ids) for ids in sources]), batch_limits(max_tokens=16384, max_sentences=512)
    )
    model: Any = run.model

    def translate() -> None:
        lines = [""] * len(sources)
        for batch, results in search_batches(
            model, search, batches, sources.__getitem__, settings.device
        ):
            for sentence, hypotheses in zip(batch.tolist(), results, strict=True):
                lines[sentence] = run.tokenizers.target.decode(hypotheses[0].tokens)
        found[name] = lines

    return translate


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
