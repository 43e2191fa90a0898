#!/usr/bin/env python3
"""Speed and BLEU of number formats on a CPU, with and without a shortlist, and of CTranslate2.

Every system translates the same sentences with one thread, in turns in one process, in batches of
the size that is fastest for it. Times are processor times, and ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import ctranslate2
import numpy as np
import torch
from common import Goal, add_common_arguments, finish, table
from generation_models import large_run
from plain import batch_limits, beam_search

from ds_seq.config.generation import GenerationConfig
from ds_seq.data.shards import ShardReader
from ds_seq.distributed import keep_freed_memory
from ds_seq.errors import run_command
from ds_seq.generation.translate import cut_batches, search_batches
from ds_seq.runs.card import LoadedRun
from ds_seq.runs.export import export
from ds_seq.runs.open import load_packed, load_run
from ds_seq.runs.shortlist import with_shortlist
from ds_seq.scores.metric import find_metric
from ds_seq.scores.significance import Resampling, score_systems
from ds_seq.search.beam_search import BeamSearch

BEAM, MOST = 5, 60
TOKENS = 4096  # most of a batch
CPU = torch.device("cpu")
FORMATS = ("fp32", "bf16", "int8")
PLAIN = "ds_seq fp32"

Translate = Callable[[list[list[int]], int], list[list[int]]]
"""Sources with end symbols, and the number of sentences in a batch -> ids without end symbols."""


class System(NamedTuple):
    """A system with its batch size."""

    translate: Translate
    size: int


def main(argv: Sequence[str]) -> int:
    """Measure, print, record; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_arguments(parser)
    parser.add_argument("--run", type=Path, required=True, help="a dense run with its shards")
    parser.add_argument("--large", action="store_true", help="widen it, see generation_models.py")
    parser.add_argument("--tag", help="first symbol of the sources to use; default: all")
    parser.add_argument("--sentences", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 64, 128])
    parser.add_argument(
        "--shortlists", type=Path, nargs="*", default=[], help="files of `ds-seq shortlist`"
    )
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    keep_freed_memory()  # as every ds-seq command does
    path = large_run(arguments.run) if arguments.large else arguments.run
    run = load_run(path, "last")
    sources, references = _text(run, arguments.sentences, arguments.tag)
    with tempfile.TemporaryDirectory() as folder:
        systems = _systems(path, run, Path(folder), arguments.shortlists)
        chosen = {
            name: _with_best_size(each, sources[::4], arguments.sizes)
            for name, each in systems.items()
        }
        rounds, found = _measure(chosen, sources, arguments.rounds)
    model = run.model_config
    title = f"{model.encoder_layers} + {model.decoder_layers} layers, width {model.d_model}, "
    title += f"vocabulary {run.tokenizers.size:,}"
    body, goals = _table(run, chosen, rounds, found, references)
    body = f"### {title}\n\n{body}"
    return finish("Number formats and shortlists on a CPU", body, goals, arguments.record)


def _text(run: LoadedRun, count: int, tag: str | None) -> tuple[list[list[int]], list[str]]:
    """Return sources with end symbols, spread over the test or validation text, and references."""
    data = run.require_experiment().data
    split = "test" if data.raw.test else "valid"
    reader = ShardReader(Path(data.dir), split, run.tokenizers.fingerprint)
    rows = [reader[row] for row in range(len(reader))]
    if tag is not None:
        (first,) = run.tokenizers.source.encode(tag)
        rows = [row for row in rows if row[0][0] == first]
    rows = [row for row in rows if len(row[0]) < MOST - 10][:: max(len(rows) // count, 1)][:count]
    target = run.tokenizers.target
    return [row[0].tolist() for row in rows], [target.decode(row[1].tolist()) for row in rows]


def _systems(
    path: Path, run: LoadedRun, folder: Path, shortlists: Sequence[Path]
) -> dict[str, Translate]:
    runs = {name: load_packed(path, "last", name, CPU) for name in FORMATS}
    search = beam_search(run.tokenizers.symbols, beam=BEAM, max_len_a=0, max_len_b=MOST, min_len=0)
    systems = {f"ds_seq {name}": _ours(each, search) for name, each in runs.items()}
    for file in shortlists:
        settings = GenerationConfig(shortlist=str(file))
        short = with_shortlist(search, settings, run.tokenizers, CPU)
        for name in ("fp32", "int8"):
            systems[f"ds_seq {name}, {file.stem}"] = _ours(runs[name], short)
    export(path, folder / "ctranslate2", "last", form="ctranslate2")
    for name, kind in (("fp32", "float32"), ("int8", "int8")):
        systems[f"CTranslate2 {name}"] = _theirs(run, folder / "ctranslate2", kind)
    return systems


def _ours(run: LoadedRun, search: BeamSearch) -> Translate:
    def translate(sources: list[list[int]], size: int) -> list[list[int]]:
        limits = batch_limits(max_tokens=TOKENS, max_sentences=size)
        batches = cut_batches(np.array([len(ids) for ids in sources]), limits)
        answer: list[list[int]] = [[]] * len(sources)
        for batch, found in search_batches(run.model, search, batches, sources.__getitem__, CPU):
            for sentence, hypotheses in zip(batch.tolist(), found, strict=True):
                answer[sentence] = hypotheses[0].tokens
        return answer

    return translate


def _theirs(run: LoadedRun, folder: Path, kind: str) -> Translate:
    translator = ctranslate2.Translator(
        str(folder), inter_threads=1, intra_threads=1, compute_type=kind
    )
    tokenizers = run.tokenizers
    pieces = {p: i for i, p in enumerate(tokenizers.target.pieces(range(len(tokenizers.target))))}

    def translate(sources: list[list[int]], size: int) -> list[list[int]]:
        found = translator.translate_batch(
            [tokenizers.source.pieces(ids[:-1]) for ids in sources],
            max_batch_size=size,
            beam_size=BEAM,
            max_decoding_length=MOST + 1,  # counts the end symbol
            min_decoding_length=0,
        )
        return [[pieces[piece] for piece in each.hypotheses[0]] for each in found]

    return translate


def _with_best_size(translate: Translate, sources: list[list[int]], sizes: Sequence[int]) -> System:
    translate(sources[:8], 8)  # the first call is slower than the others
    if len(sizes) == 1:
        return System(translate, sizes[0])
    return System(translate, min(sizes, key=lambda n: _seconds(lambda: translate(sources, n))))


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _measure(
    systems: dict[str, System], sources: list[list[int]], rounds: int
) -> tuple[list[dict[str, float]], dict[str, list[list[int]]]]:
    """Return the seconds of each system in each round, and the translations of the last round."""
    seconds: list[dict[str, float]] = []
    found: dict[str, list[list[int]]] = {}
    for _ in range(rounds):
        seconds.append({})
        for name, system in systems.items():
            start = time.process_time()
            found[name] = system.translate(sources, system.size)
            seconds[-1][name] = time.process_time() - start
        print({name: round(each, 2) for name, each in seconds[-1].items()}, file=sys.stderr)
    return seconds, found


def _table(
    run: LoadedRun,
    systems: dict[str, System],
    rounds: Sequence[dict[str, float]],
    found: dict[str, list[list[int]]],
    references: list[str],
) -> tuple[str, list[Goal]]:
    def ratio(name: str, to: str) -> float:
        return statistics.median(each[to] / each[name] for each in rounds)

    target_lang = run.require_experiment().data.target_lang or ""
    texts = {name: [run.tokenizers.target.decode(ids) for ids in found[name]] for name in systems}
    metrics = [find_metric("bleu", target_lang, "")]
    scores = score_systems(texts, [references], metrics, Resampling(paired="bootstrap"))
    rows = []
    for name, system in systems.items():
        (score,) = scores[name]
        same = sum(a == b for a, b in zip(found[name], found[PLAIN], strict=True))
        ratios = [f"{ratio(name, f'{to} {kind}'):.2f}" for to in ("ds_seq", "CTranslate2")
                  for kind in ("fp32", "int8")]  # fmt: skip
        p_value = "" if score.p_value is None else f"{score.p_value:.3f}"
        found_row = [name, str(system.size), *ratios, f"{same} of {len(references)}"]
        rows.append([*found_row, f"{score.value:.2f}", p_value])
    header = ["system", "batch", f"to {PLAIN}", "to ds_seq int8", "to CTranslate2 fp32"]
    header += ["to CTranslate2 int8", f"equal to {PLAIN}", "BLEU", "p"]
    bleu = {name: score.value for name, (score,) in scores.items()}
    goals = [
        Goal(
            f"BLEU of ds_seq {name}, less that of fp32", bleu[f"ds_seq {name}"] - bleu[PLAIN], -0.1
        )
        for name in FORMATS[1:]
    ]
    speed = ratio("ds_seq int8", "CTranslate2 int8")
    goals.append(Goal("ds_seq int8 to CTranslate2 int8", speed, 0.8, "x"))
    return (
        f"{table(header, rows)}\n\nMedians of {len(rounds)} rounds: {len(references)} sentences, "
        f"beam {BEAM}, one thread, processor time; p: paired bootstrap of BLEU against {PLAIN}. "
        f"torch {torch.__version__}, CTranslate2 {ctranslate2.__version__}."
    ), goals


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
