"""Small trainings on real text: data of some pairs, runs that are not repeated, their scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common import table, timed_command
from denoising import CONFIGS, SIDES, figures

from ds_seq.scores.metric import find_metric
from ds_seq.scores.significance import Resampling, score_systems
from ds_seq.text.lines import read_lines

RECIPE = CONFIGS / "tiny_dense.yaml"
SMALL = (
    "model.d_model=64",
    "model.ffn_dim=256",
    "train.max_tokens=1000",
    "validation={metrics: [], best: loss}",
    "data.vocab.size=2000",
)
"""The quick start at half its width, whose trainings take a minute or two of processor time."""


@dataclass(frozen=True)
class Scored:
    """A run and what it reached.

    Attributes:
        bleu: BLEU of the test text.
        cells: best validation loss, BLEU and chrF with confidence intervals, processor minutes.
    """

    bleu: float
    cells: list[str]


class RealText:
    """A folder with the shards of the first pairs of a text, and trainings on them.

    Args:
        out: the folder.
        text: folder of the text, from `experiments.fetch_text`.
        pairs: number of pairs to learn from; None: all.
    """

    def __init__(self, out: Path, text: Path, pairs: int | None) -> None:
        self.out, self.text, self.pairs = out.resolve(), text, pairs
        self.data = self.out / ("all" if pairs is None else f"first-{pairs}")
        raw = {split: self._files(self.text / "raw", split) for split in ("valid", "test")}
        raw["train"] = self._files(self.data, "train")
        self.settings = [*SMALL, f"data.dir={self.data}", f"data.raw={json.dumps(raw)}"]
        if not (self.data / "train.manifest.json").exists():
            self._prepare()

    @staticmethod
    def _files(folder: Path, split: str) -> dict[str, str]:
        return {side: str(folder / f"{split}.{language}") for side, language in SIDES}

    def _prepare(self) -> None:
        """Write the pairs; the vocabulary is always that of all pairs."""
        self.data.mkdir(parents=True, exist_ok=True)
        for _, language in SIDES:
            lines = read_lines(self.text / "raw" / f"train.{language}")[: self.pairs]
            content = "".join(f"{line}\n" for line in lines)
            (self.data / f"train.{language}").write_text(content, encoding="utf-8")
        if self.pairs is not None:
            vocab = RealText(self.out, self.text, None).data / "vocab.model"
            (self.data / "vocab.model").write_bytes(vocab.read_bytes())
        timed_command("prepare", RECIPE, *self.settings)

    def run(self, name: str) -> Path:
        """Return the folder of a run."""
        return self.out / name

    def train(self, name: str, updates: int, *settings: str) -> Path:
        """Train unless that is done; return the run folder. `minutes` reads its processor time."""
        return trained(self.run(name), RECIPE, updates, *self.settings, *settings)

    def scored(self, names: Sequence[str]) -> Mapping[str, Scored]:
        """Return the scores of runs, each with its best checkpoint."""
        references = read_lines(self.text / "raw" / "test.de")
        metrics = [find_metric(metric, "de", "benchmark") for metric in ("bleu", "chrf")]
        systems = {name: self._translations(self.run(name)) for name in names}
        scores = score_systems(systems, [references], metrics, Resampling(confidence=True))
        found = {}
        for name in names:
            valid = [line for line in figures(self.run(name)) if line["kind"] == "valid"]
            cells = [f"{min(line['nll'] for line in valid):.3f}"]
            cells += [f"{score.value:.2f} ± {score.ci:.2f}" for score in scores[name]]
            cells.append(f"{minutes(self.run(name)):.1f}")
            found[name] = Scored(scores[name][0].value, cells)
        return found

    def _translations(self, run: Path) -> list[str]:
        path = run.with_suffix(".hyp")
        if not path.exists():
            source = self.text / "raw" / "test.en"
            timed_command("generate", run, "--input", source, "--output", path)
        return read_lines(path)


def trained(run: Path, config: Path, updates: int, *settings: str) -> Path:
    """Train a run unless that is done; return its folder.

    Args:
        run: the folder.
        config: experiment file.
        updates: number of updates.
        settings: overrides of the experiment.
    """
    if not run.with_suffix(".json").exists():
        own = (f"run_dir={run}", f"train.max_updates={updates}", "train.tensorboard=false")
        seconds = timed_command("train", config, "--overwrite", *settings, *own)
        run.with_suffix(".json").write_text(json.dumps({"seconds": seconds}), encoding="utf-8")
    return run


def minutes(run: Path) -> float:
    """Return the processor minutes of a finished training."""
    return float(json.loads(run.with_suffix(".json").read_text(encoding="utf-8"))["seconds"]) / 60


def score_table(rows: Mapping[str, str], scored: Mapping[str, Scored]) -> str:
    """Return the table of some runs; `rows` maps runs to what they are."""
    header = ["training", "best valid nats", "BLEU", "chrF", "processor minutes"]
    return table(header, [[text, *scored[name].cells] for name, text in rows.items()])
