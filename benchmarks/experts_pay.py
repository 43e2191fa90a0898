#!/usr/bin/env python3
"""Do experts pay? One model from English into many languages, dense and with experts.

    python benchmarks/experts_pay.py cs=en-cs.tsv.xz ... --general train.tsv valid.tsv test.tsv
    python benchmarks/experts_pay.py --folder FOLDER --report [--record]

Both systems see the same batches and have as many active parameters. The learning rate is constant
and falls over the last fifth of a run; the run with experts ends at 0.6 of the updates. Its loss
there is compared with the dense model's at its end. Before both fall, the pair says after what
share of the dense model's updates experts reach each of its losses, by averaged weights. A pair
with a constant rate to the end (`--schedules constant`) says it for more losses. Compared are nats
per target token of held-out text, without the losses of routers. What is finished is not done
again, so `--only NAME` divides the runs over machines.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from common import Section, add_common_arguments, finish
from experiments import NEVER, write_experiment
from experts_pay_report import SHARE, Curves, pairs, plot, read_curves, report, seeds_of
from experts_pay_setup import (
    DENSE,
    MEDIUM,
    MOE,
    SMALL,
    Run,
    Shape,
    experiment,
    languages_of,
    write_text,
)
from multilingual import pairs_of, quality_of
from multilingual import report as quality_report
from worker import Block, Worker

import ds_seq
from ds_seq.config.load import dump
from ds_seq.errors import UserError, run_command

HERE = Path(__file__).resolve().parent
PICTURE = HERE / "plots" / "experts_pay.png"
TURN = 5  # updates
BEAM = 4
GPU_HOURS = 4 / 60
GPU_SETTINGS = (
    "train.max_tokens=32768",
    "train.precision=bf16",
    f"train.max_hours={GPU_HOURS:.4f}",
    "model.dropout=0.15",
    "model.activation_dropout=0.1",
)
GPU_MOE_SETTINGS = ("model.moe.output_masking=0.1",)
GPU_SCRIPT = """#!/usr/bin/env bash
# Both runs, 4 minutes each on one GPU, then the report. CHECKOUT: folder of ds_seq's repository.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
export PYTHONPATH=$CHECKOUT${PYTHONPATH:+:$PYTHONPATH} TORCH_CUDNN_SDPA_DEPRIORITIZED=1
[ -d data-6000 ] || tar xf shards.tar.xz
for system in dense moe; do
    python3 -m ds_seq train "constant-$system-1.yaml" --overwrite
done
python3 "$CHECKOUT/benchmarks/experts_pay.py" --folder . --report
"""


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; return the exit code."""
    arguments = _parse(argv)
    folder: Path = arguments.folder
    if arguments.texts:
        files = {code: Path(name) for code, _, name in (t.partition("=") for t in arguments.texts)}
        general = dict(zip(("train", "valid", "test"), arguments.general or (), strict=False))
        if not (folder / "text" / "test").is_dir():
            write_text(files, general, folder / "text")
    if arguments.prepare_gpu is not None:
        return _prepare_gpu(folder, arguments.prepare_gpu)
    if not arguments.report:
        _train(arguments)
    curves = read_curves(folder / "runs")
    if arguments.only is not None:
        return 0
    if not any(seeds_of(curves, schedule) for schedule in ("constant", "decay")):
        raise UserError(f"{folder}/runs: no pair of runs was validated; train them first")
    return _finish(arguments, curves)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_arguments(parser)
    add = parser.add_argument
    add("texts", nargs="*", metavar="LANGUAGE=FILE", help="tables: English, other language")
    add("--general", nargs=3, type=Path, metavar=("TRAIN", "VALID", "TEST"), help="en-de tables")
    add("--folder", type=Path, default=Path.home() / ".cache/ds_seq/experts_pay")
    add("--updates", type=int, default=4000, help="of the dense runs; a multiple of 1,000")
    add("--seeds", type=int, nargs="+", default=[1, 2, 3])
    add("--schedules", nargs="+", default=["decay"], choices=["constant", "decay"])
    add("--only", metavar="NAME", help="train one run, such as constant-moe-1, and do not report")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of all experiments")
    add("--set-moe", nargs="+", default=[], metavar="KEY=VALUE", help="of those with experts")
    add("--cost", type=int, metavar="N", help="compare processor time in N turns of 5 updates")
    add("--report", action="store_true", help="train nothing; report on the runs of --folder")
    add("--bleu", action="store_true", help="translate the test text with the last weights")
    add("--prepare-gpu", type=Path, metavar="OUT", help="write a folder for 2 x 4 minutes on a GPU")
    add("--no-plot", dest="plot", action="store_false", help="draw no plot; needs no matplotlib")
    if "--quick" in argv:
        parser.set_defaults(updates=8, seeds=[1], set=["train.validate_every=2"])
    return parser.parse_args(argv)


def _runs(arguments: argparse.Namespace) -> list[Run]:
    runs = []
    for seed in arguments.seeds:
        for schedule in arguments.schedules:
            for system in (DENSE, MOE):
                ends_early = schedule == "decay" and system == MOE
                updates = round(arguments.updates * (SHARE if ends_early else 1.0))
                runs.append(Run(system, schedule, seed, updates))
    return [run for run in runs if arguments.only in (None, run.name)]


def _settings(arguments: argparse.Namespace, system: str) -> list[str]:
    return [*arguments.set, *(arguments.set_moe if system == MOE else ())]


def _train(arguments: argparse.Namespace) -> None:
    for run in _runs(arguments):
        path = _write(arguments.folder, run, SMALL, _settings(arguments, run.system))
        ds_seq.fit(path, resume=True)
    if arguments.cost is not None:
        ratio = _cost(arguments)
        (arguments.folder / "cost.json").write_text(json.dumps(ratio), encoding="utf-8")


def _write(folder: Path, run: Run, shape: Shape, settings: Sequence[str]) -> Path:
    """Write the experiment of a run, and prepare the text unless that is done."""
    path = folder / f"{run.name}.yaml"
    write_experiment(experiment(folder, run, shape), path, settings)
    return path


def _cost(arguments: argparse.Namespace) -> float:
    """Return the processor time of an update with experts to one of the dense model."""
    blocks: dict[str, list[Block]] = {DENSE: [], MOE: []}
    silent = ["train.validate_every=null", f"train.save_every={NEVER}", "train.ema=null"]
    with contextlib.ExitStack() as stack:
        workers = []
        for system in blocks:
            run = Run(system, "cost", 1, NEVER)
            settings = [*_settings(arguments, system), *silent]
            path = _write(arguments.folder, run, SMALL, settings)
            command = [sys.executable, str(HERE / "ds_seq_side.py"), str(path)]
            log, environment = path.with_suffix(".log"), {"OMP_NUM_THREADS": "1"}
            workers.append(stack.enter_context(Worker(system, command, log, environment)))
        for turn in range(arguments.cost + 1):
            for worker in workers if turn % 2 else workers[::-1]:
                blocks[worker.name].append(worker.run(TURN))
    pairs = list(zip(blocks[MOE], blocks[DENSE], strict=True))[1:]  # after the first turn
    assert all(moe.target_tokens == dense.target_tokens for moe, dense in pairs)
    return statistics.median(moe.cpu_seconds / dense.cpu_seconds for moe, dense in pairs)


def _finish(arguments: argparse.Namespace, curves: Curves) -> int:
    folder: Path = arguments.folder
    _check_batches(curves)
    file = folder / "cost.json"
    cost = float(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None
    section = Section("Do experts pay, in many languages?", *report(curves, cost))
    body = section.body
    if cost is not None:
        body += f"\n\nProcessor time of an update with experts: {cost:.2f} of that without."
    if arguments.bleu:
        body += f"\n\n{_quality(folder, seeds_of(curves, 'decay'))}"
    if arguments.plot:
        plot(curves, PICTURE if arguments.record else folder / PICTURE.name)
        body += f"\n\n![curves](plots/{PICTURE.name})" if arguments.record else ""
    return finish(section.title, body, section.goals, arguments.record)


def _quality(folder: Path, seeds: Sequence[int]) -> str:
    """Return BLEU and nats of the last weights of the runs whose learning rate fell."""
    languages = languages_of(folder / "text")
    test = {code: list(pairs_of(folder / "text" / "test" / f"{code}.tsv")) for code in languages}
    runs = [Run(system, "decay", seed, 0) for seed in seeds for system in (DENSE, MOE)]
    found = {run.name: quality_of(folder / "runs" / run.name, test, BEAM) for run in runs}
    return quality_report(found, test)


def _check_batches(curves: Curves) -> None:
    """Check that both runs of a pair had as many target tokens at each update."""
    for dense, moe in pairs(curves):
        tokens = {each.update: each.tokens for each in dense}
        for each in moe:
            theirs = tokens.get(each.update, each.tokens)
            assert theirs == each.tokens, f"other batches before update {each.update}"


def _prepare_gpu(folder: Path, out: Path) -> int:
    """Write a folder that trains both systems on a GPU, without raw text."""
    out.mkdir(parents=True, exist_ok=True)
    for system in (DENSE, MOE):
        run = Run(system, "constant", 1, NEVER)
        settings = [*GPU_SETTINGS, *(GPU_MOE_SETTINGS if system == MOE else ())]
        content = experiment(folder, run, MEDIUM)
        config = write_experiment(content, out / f"{run.name}.yaml", settings)
        text = dump(config).replace(f"{folder}/", "")
        (out / f"{run.name}.yaml").write_text(text, encoding="utf-8")
    shards = folder / f"data-{MEDIUM.vocab_size}"
    with tarfile.open(out / "shards.tar.xz", "w:xz", preset=1) as archive:
        archive.add(shards, shards.name, filter=_if_needed)
    (out / "run.sh").write_text(GPU_SCRIPT, encoding="utf-8")
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {size / 1e6:.1f} MB; CHECKOUT=FOLDER bash {out.name}/run.sh")
    return 0


def _if_needed(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave out clean text and the test split."""
    name = Path(info.name).name
    return None if name == "clean" or name.startswith("test.") else info


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
