#!/usr/bin/env python3
"""Translation speed of ds_seq, fairseq and CTranslate2 with the same weights and sentences.

Every system runs in a separate process with its best batch size, and they take turns: all
sentences by one system, then all by the next, for several rounds. Ratios are taken within a round.
The settings allow the same translations: length limits are not reached, and no system forbids the
end symbol. Translations that differ from ours are listed, with our scores of both and the cause:

- near-tie: the two scores are closer than 1e-3;
- rounding: with our model in float64 we find theirs, so there was a near-tie during the search;
- limit: theirs has the maximum length, where CTranslate2 cuts a translation without an end symbol;
- REAL: none of these; the goal is zero of them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import Goal, Section, Spread, add_common_arguments, finish, table
from experiments import CACHE, fetch_text
from fairseq_venv import make_fairseq_venv
from generation_causes import MOST, REAL, bleu_of, differences
from generation_growth import Growing, length_section
from generation_half import Halving, half_section
from generation_models import (
    LARGE_LAYERS,
    LARGE_WIDTH,
    SMALL_WIDTH,
    SMALLEST_WIDTH,
    large_run,
    recipe,
    small_run,
    widened_run,
)
from generation_peers import peers_section
from generation_widths import Case, widths_section
from overhead_generation import Translating, generation_section
from parity_sides import Hypothesis, Ours, Setting, Subject
from parity_weights import FIRST_POSITION, fairseq_flags, fairseq_weights
from safetensors.torch import save_file
from worker import Block, Worker

from ds_seq.data.batch import ParallelDataset
from ds_seq.data.shards import ShardReader
from ds_seq.distributed import keep_freed_memory
from ds_seq.errors import run_command
from ds_seq.runs.card import LoadedRun
from ds_seq.runs.export import export
from ds_seq.runs.open import load_run

HERE = Path(__file__).resolve().parent
OURS, FAIRSEQ, CTRANSLATE2 = "ds_seq", "fairseq", "CTranslate2"
IN_BYTES = {f"{OURS} int8": OURS, f"{CTRANSLATE2} int8": CTRANSLATE2}  # linear maps in 8 bits
FAIRSEQ_GOAL, CTRANSLATE2_GOAL = 2.0, 0.8
BEAM = 5


@dataclass(frozen=True)
class Plan:
    """Extent of the measurement.

    Attributes:
        sentences: number of sentences for the small and the large model.
        rounds: maximum number of rounds.
        seconds: time per model after which no round begins, provided there have been two.
    """

    sentences: tuple[int, int]
    rounds: int
    seconds: float


QUICK = Plan((300, 24), rounds=3, seconds=15)
FULL = Plan((1000, 100), rounds=7, seconds=100)


def main(argv: Sequence[str]) -> int:
    """Measure, print, record; return the exit status."""
    arguments = _parse(argv)
    keep_freed_memory()  # as every ds-seq command does
    plan = QUICK if arguments.quick else FULL
    small = arguments.run or small_run(arguments.cache, arguments.tsv)
    sections = []
    with tempfile.TemporaryDirectory(prefix="ds_seq_generation_") as folder:
        for name in arguments.only:
            print(f"{name} ...", file=sys.stderr, flush=True)
            sections.append(SECTIONS[name](arguments, plan, small, Path(folder)))
    body = "\n\n".join(f"### {section.title}\n\n{section.body}" for section in sections)
    goals = [goal for section in sections for goal in section.goals]
    return finish("Translation speed", body, goals, arguments.record)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_arguments(parser)
    parser.add_argument("--threads", type=int, default=2, help="threads of each system")
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 192, 256, 512])
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4, 5])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument(
        "--run", type=Path, help="a trained dense run as the small model; default: train one, once"
    )
    parser.add_argument(
        "--tsv", type=Path, metavar="FILE", help="source<TAB>target lines instead of fetched text"
    )
    parser.add_argument("--cache", type=Path, default=CACHE, help="for text, models and fairseq")
    return parser.parse_args(argv)


def _small(arguments: argparse.Namespace, plan: Plan, small: Path, folder: Path) -> Section:
    return _compared(arguments, plan, small, folder / "small", plan.sentences[0])


def _large(arguments: argparse.Namespace, plan: Plan, small: Path, folder: Path) -> Section:
    return _compared(arguments, plan, large_run(small), folder / "large", plan.sentences[1])


def _widths(arguments: argparse.Namespace, plan: Plan, small: Path, folder: Path) -> Section:
    cases = []
    for width in arguments.widths:
        path, layers = small, LARGE_LAYERS if width >= LARGE_WIDTH else 2
        if width % SMALL_WIDTH:
            path = small_run(arguments.cache, arguments.tsv, SMALLEST_WIDTH)
        run = load_run(path, "best")
        sources, _ = text_of(run, plan.sentences[width >= LARGE_WIDTH])
        if width != run.model_config.d_model:
            path = widened_run(path, width, layers)
            run = load_run(path, "best")
        own = folder / f"width-{width}"
        own.mkdir()
        job = job_of(1, path, run, sources, own)
        case = f"{layers} + {layers} layers, width {width}"
        cases.append(Case(case, job, len(sources), partial(differences, run, sources)))
    return widths_section(cases, arguments.beams, plan.rounds, folder, REAL)


def _peers(arguments: argparse.Namespace, plan: Plan, small: Path, folder: Path) -> Section:
    own = folder / "peers"
    own.mkdir()
    run = load_run(small, "best")
    model, count = run.model_config, plan.sentences[0] // 2
    sources, references = text_of(run, count)
    job = job_of(1, small, run, sources, own)
    export(small, own / "huggingface", "best", form="hf")
    layers = model.encoder_layers
    sizes = (run.tokenizers.size, layers, model.d_model, model.ffn_dim, model.num_heads)
    job |= {
        "huggingface": str(own / "huggingface"),
        "sizes": [*sizes, 0.0, model.norm_position],
    }
    title = f"{layers} + {layers} layers, width {model.d_model}, vocabulary {run.tokenizers.size:,}"
    case = Case(title, job, len(sources), partial(differences, run, sources))
    bleu = partial(bleu_of, run, references=references)
    return peers_section(case, BEAM, plan.rounds, own, arguments.cache, bleu)


def _experts(arguments: argparse.Namespace, plan: Plan, small: Path, folder: Path) -> Section:
    section = generation_section(
        Translating(
            recipe(fetch_text(arguments.cache, arguments.tsv)),
            folder,
            None,
            plan.sentences[0],
            batch=128,
            threads=arguments.threads,
            rounds=plan.rounds,
            seconds=plan.seconds / 2,
        )
    )
    return Section("Experts", section.body, section.goals)


def _length(arguments: argparse.Namespace, plan: Plan, small: Path, folder: Path) -> Section:
    return length_section(Growing(small, arguments.threads, plan.rounds, plan.seconds / 2))


def _half(arguments: argparse.Namespace, plan: Plan, small: Path, folder: Path) -> Section:
    if not torch.cuda.is_available():
        return Section("Half precision", "Skipped: this machine has no GPU.")
    device = torch.device("cuda")
    return half_section(Halving(large_run(small), device, 1000, plan.rounds, plan.seconds / 2))


SECTIONS: dict[str, Callable[[argparse.Namespace, Plan, Path, Path], Section]] = {
    "small": _small,
    "large": _large,
    "widths": _widths,
    "peers": _peers,
    "experts": _experts,
    "length": _length,
    "half": _half,
}


def _compared(
    arguments: argparse.Namespace, plan: Plan, path: Path, folder: Path, count: int
) -> Section:
    """Compare all systems with one model."""
    folder.mkdir()
    run = load_run(path, "best")
    sources, references = text_of(run, count)
    python = str(make_fairseq_venv(arguments.cache / "fairseq-venv"))
    job = job_of(arguments.threads, path, run, sources, folder)
    threads = str(arguments.threads)
    environment = {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",  # fairseq 0.12 predates this check
    }
    systems = {name: name for name in (OURS, FAIRSEQ, CTRANSLATE2)} | IN_BYTES
    answers = {name: folder / f"{name}.answer.json" for name in systems}
    with contextlib.ExitStack() as stack:
        workers = []
        for name, system in systems.items():
            own = folder / f"{name}.json"
            settings = {"system": system, "int8": name in IN_BYTES, "answer": str(answers[name])}
            own.write_text(json.dumps(job | settings), encoding="utf-8")
            interpreter = python if system == FAIRSEQ else sys.executable
            command = [interpreter, str(HERE / "generation_sides.py"), str(own)]
            worker = Worker(name, command, folder / f"{name}.log", environment)
            workers.append(stack.enter_context(worker))
        rounds = _measure(workers, plan)
        for worker in workers:
            worker.save()
    found = {
        name: [Hypothesis(*one) for one in json.loads(answer.read_text(encoding="utf-8"))]
        for name, answer in answers.items()
    }
    return _section(run, (sources, references), workers, rounds, found)


def text_of(run: LoadedRun, count: int) -> tuple[list[list[int]], list[str]]:
    """Return sentences spread over the run's test or validation text.

    A briefly trained model sometimes repeats itself endlessly. Such sentences are left out, since
    their translations depend on the length limits of a system, which differ.

    Returns:
        Ids of sources, without end symbols, and references.
    """
    data = run.require_experiment().data
    reader = ShardReader(
        Path(data.dir), "test" if data.raw.test else "valid", run.tokenizers.fingerprint
    )
    dataset = ParallelDataset(reader, data.max_source_length, data.max_target_length)
    tried = dataset.rows[:: max(len(dataset.rows) // (count + count // 8), 1)]
    pairs = [reader[int(row)] for row in tried]
    sources = [src.tolist() for src, _ in pairs]
    found = Ours(Subject(run.model, run.model_config, run.tokenizers.size)).search(
        sources, Setting(BEAM, 1.0)
    )
    ending = [i for i, ids in enumerate(sources) if len(found[i][0].tokens) < len(ids) + 10][:count]
    return [sources[i][:-1] for i in ending], [
        run.tokenizers.target.decode(pairs[i][1]) for i in ending
    ]


def job_of(
    threads: int, path: Path, run: LoadedRun, sources: list[list[int]], folder: Path
) -> dict[str, Any]:
    """Return the job of the children, and write the model in the format of each."""
    export(path, folder / "ctranslate2", "best", form="ctranslate2")
    weights = folder / "fairseq.safetensors"
    save_file(fairseq_weights(run.model, run.model_config), weights)
    return {
        "threads": threads,
        "beam": BEAM,
        "most": MOST,
        "sources": sources,
        "choose_from": 2,  # every second sentence is enough to choose the batch size
        "run": str(path),
        "ctranslate2": str(folder / "ctranslate2"),
        "num_parameters": sum(p.numel() for p in run.model.parameters()),
        "fairseq": {
            "flags": fairseq_flags(run.model_config),
            "vocab_size": run.tokenizers.size,
            "first_position": FIRST_POSITION,
            "double": False,
            "weights": str(weights),
        },
    }


def _measure(workers: Sequence[Worker], plan: Plan) -> list[dict[str, Block]]:
    """Let all systems take turns; return the results of each in each round."""
    rounds: list[dict[str, Block]] = []
    spent = 0.0
    for number in range(plan.rounds):
        if number >= 2 and spent > plan.seconds:
            break
        blocks = {worker.name: worker.run(1) for worker in workers}
        speeds = ", ".join(f"{n} {b.updates / b.seconds:,.1f}" for n, b in blocks.items())
        print(f"round {number + 1}: sentences/s: {speeds}", file=sys.stderr, flush=True)
        rounds.append(blocks)
        spent += sum(block.seconds for block in blocks.values())
    return rounds


def _section(
    run: LoadedRun,
    text: tuple[list[list[int]], list[str]],
    workers: Sequence[Worker],
    rounds: Sequence[dict[str, Block]],
    answers: dict[str, list[Hypothesis]],
) -> Section:
    sources, references = text
    rows = []
    for worker in workers:
        name, found = worker.name, answers[worker.name]
        blocks = [each[name] for each in rounds]
        rows.append(
            [
                name,
                Spread.of([block.updates / block.seconds for block in blocks]).text(1),
                _ratio(rounds, name, FAIRSEQ).text(2),
                _ratio(rounds, name, CTRANSLATE2).text(2),
                f"{statistics.median(block.updates / block.cpu_seconds for block in blocks):,.1f}",
                f"{_same(answers[OURS], found)} of {len(sources)}",
                f"{bleu_of(run, found, references):.2f}",
            ]
        )
    header = ["system", "sentences/s", "to fairseq", "to CTranslate2"]
    header += ["sentences per CPU second", "translations equal to ours", "BLEU"]
    notes = [
        f"{name}, {one}"
        for name in (FAIRSEQ, CTRANSLATE2)
        for one in differences(run, sources, BEAM, answers[OURS], answers[name])
    ]
    versions = "; ".join(f"{worker.name}: {worker.versions}" for worker in workers)
    model, tokens = run.model_config, sum(len(found.tokens) for found in answers[OURS])
    body = (
        f"{table(header, rows)}\n\n"
        f"Medians (and extremes) of {len(rounds)} rounds: {len(sources)} sentences of "
        f"{sum(map(len, sources)) / len(sources):.1f} tokens, translations of "
        f"{tokens / len(sources):.1f}; beam {BEAM}, float32 except for the last two. {versions}."
        + "".join(f"\n- {one}" for one in notes)
    )
    title = (
        f"{model.encoder_layers} + {model.decoder_layers} layers, width {model.d_model}, "
        f"vocabulary {run.tokenizers.size:,}"
    )
    goals = [
        Goal(f"{OURS} to {to}, width {model.d_model}", _ratio(rounds, OURS, to).median, bound, "x")
        for to, bound in ((FAIRSEQ, FAIRSEQ_GOAL), (CTRANSLATE2, CTRANSLATE2_GOAL))
    ]
    real = sum(one.endswith(REAL) for one in notes)
    goals.append(Goal("differences without a cause", real, 0, at_least=False))
    return Section(title, body, goals)


def _same(ours: list[Hypothesis], theirs: list[Hypothesis]) -> int:
    return sum(a.tokens == b.tokens for a, b in zip(ours, theirs, strict=True))


def _ratio(rounds: Sequence[dict[str, Block]], system: str, to: str) -> Spread:
    return Spread.of([blocks[to].seconds / blocks[system].seconds for blocks in rounds])


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
