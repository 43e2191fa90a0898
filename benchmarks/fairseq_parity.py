#!/usr/bin/env python3
"""Whether beam search finds the same translations as fairseq's, with the same weights.

The weights of a trained dense run are copied parameter by parameter into fairseq's
`TransformerModel`. fairseq's `SequenceGenerator` and our `BeamSearch` then translate the same
sources (ids; no text is read) with every beam and length penalty. Translations that differ are
listed, each with both sides' scores of both and the cause:

- near-tie: the scores of the two are closer than 1e-4;
- rounding: with the models in float64 both find the same, so there was a near-tie during the search
  that decided which hypothesis stayed in the beam;
- begin symbol: see below;
- REAL: none of these; the goal is zero of them.

Intended differences between the two:

- Length limit. fairseq uses 1.2 S + 10 with S the width of the padded batch, so a translation
  may depend on its batch. Ours depends on the length of the sentence itself. Here fairseq gets
  batches of equally long sources, where both limits are the same; ours are padded as in
  `ds-seq generate`.
- Begin symbol. fairseq may generate `<s>`, which occurs in no target; we never do. It then occupies
  a place in the beam, so even a translation without it may differ.
- Stopping. fairseq continues until a sentence has as many finished hypotheses as the beam
  width. We also stop when no open hypothesis can still win; the best one is the same.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from common import Goal, add_common_arguments, finish, table
from experiments import CACHE, Recipe, fetch_text, model_section, write_experiment
from fairseq_venv import make_fairseq_venv
from parity_compare import REAL, Comparison, Difference, compare, count_causes, explain
from parity_recorded import write_recorded
from parity_sides import Fairseq, Ours, Setting, Subject

from ds_seq.data.batch import ParallelDataset
from ds_seq.data.shards import ShardReader
from ds_seq.errors import UserError
from ds_seq.runs.card import LoadedRun
from ds_seq.runs.open import load_run

BEAMS = (1, 4, 5, 10)
LENGTH_PENALTIES = (0.6, 1.0, 1.2)
SETTINGS = [Setting(beam, penalty) for beam in BEAMS for penalty in LENGTH_PENALTIES]
LARGEST = 1e-4
UPDATES = 500  # of the run trained by default


def main(argv: Sequence[str]) -> int:
    """Compare, print, record; return the exit status."""
    arguments = _parse(argv)
    torch.set_num_threads(arguments.threads)
    python = make_fairseq_venv(arguments.cache / "fairseq-venv")
    if arguments.write_test_data:
        print(write_recorded(python, SETTINGS, arguments.threads))
        return 0
    try:
        run = load_run(arguments.run or _train(arguments.cache, arguments.tsv), "best")
        sources = _sources(run, 100 if arguments.quick else arguments.sentences)
        subject = Subject(run.model, run.model_config, run.tokenizers.size)
        fairseq = Fairseq(python, subject, arguments.threads)
        comparisons, differences = _compare(subject, fairseq, sources)
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    body = _body(run, sources, fairseq.versions, comparisons, differences)
    worst = max(comparison.largest for comparison in comparisons)
    goals = [
        Goal("differences without a cause", count_causes(differences)[REAL], 0, at_least=False),
        Goal("largest difference of scores", worst, LARGEST, at_least=False),
    ]
    return finish("Beam search compared with fairseq's", body, goals, arguments.record)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_arguments(parser)
    parser.add_argument(
        "--run", type=Path, help="a trained dense run; default: train a small one, once"
    )
    parser.add_argument(
        "--sentences", type=int, default=500, help="from the start of the held-out text"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of each side")
    parser.add_argument(
        "--tsv", type=Path, metavar="FILE", help="source<TAB>target lines instead of fetched text"
    )
    parser.add_argument("--cache", type=Path, default=CACHE, help="for text, run and fairseq")
    parser.add_argument(
        "--write-test-data",
        action="store_true",
        help="only write the reference of the unit tests: fairseq's results for a tiny model",
    )
    return parser.parse_args(argv)


def _train(cache: Path, tsv: Path | None) -> Path:
    """Return the folder of a small trained run, training it unless the cache has it."""
    text = fetch_text(cache, tsv)
    run_dir = text / "parity-run"
    if not (run_dir / "checkpoints" / "index.json").exists():
        recipe = Recipe(
            text=text,
            shards=text / "parity-shards",
            vocab_size=4000,
            model=model_section(layers=2, d_model=128, ffn_dim=512, dropout=0.1),
            train={"max_tokens": 2048, "max_updates": UPDATES},
            optimizer={"name": "adam", "lr": 2e-3, "betas": [0.9, 0.98]},
            scheduler={"name": "inverse_sqrt", "warmup_updates": 200},
            splits=("train", "valid"),
        )
        path = text / "parity-run.yaml"
        write_experiment(recipe.experiment(run_dir), path)
        subprocess.run([sys.executable, "-m", "ds_seq", "train", str(path)], check=True)
    return run_dir


def _sources(run: LoadedRun, count: int) -> list[list[int]]:
    """Return the first sentences of the run's test or validation text, as ids."""
    folder, data = Path(run.require_experiment().data.dir), run.require_experiment().data
    split = "test" if data.raw.test else "valid"
    reader = ShardReader(folder, split, run.tokenizers.fingerprint)
    dataset = ParallelDataset(reader, data.max_source_length, data.max_target_length)
    return [reader[int(row)][0].tolist() for row in dataset.rows[:count]]


def _compare(
    subject: Subject, fairseq: Fairseq, sources: list[list[int]]
) -> tuple[list[Comparison], list[Difference]]:
    ours = Ours(subject)
    comparisons, differences = [], []
    for setting, theirs in zip(SETTINGS, fairseq.search(sources, SETTINGS), strict=True):
        mine = ours.search(sources, setting)
        comparison = compare(setting, mine, theirs)
        comparisons.append(comparison)
        differences += explain(subject, fairseq, sources, comparison, mine, theirs)
    return comparisons, differences


def _body(
    run: LoadedRun,
    sources: list[list[int]],
    versions: str,
    comparisons: list[Comparison],
    differences: list[Difference],
) -> str:
    rows = []
    for comparison in comparisons:
        causes = count_causes([d for d in differences if d.setting == comparison.setting])
        rows.append(
            [
                f"beam {comparison.setting.beam}, lenpen {comparison.setting.length_penalty}",
                f"{comparison.identical} of {comparison.total}",
                f"{comparison.largest:.1e}",
                ", ".join(f"{count} {cause}" for cause, count in causes.items()) or "none",
            ]
        )
    header = ["search", "same translation", "largest difference of scores", "differing"]
    model = run.model_config
    remarks = (
        f"{len(sources)} sentences, {sum(map(len, sources)) / len(sources):.1f} tokens on average; "
        f"{model.encoder_layers} + {model.decoder_layers} layers, width {model.d_model}, "
        f"vocabulary {run.tokenizers.size:,}; float32; {versions}. fairseq in batches of equally "
        "long sources, ours in padded ones."
    )
    listed = "".join(f"\n- {difference}" for difference in differences)
    return f"{table(header, rows)}\n\n{remarks}" + (f"\n{listed}" if listed else "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
