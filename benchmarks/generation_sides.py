"""generation.py: one system in a separate process, which translates on command.

Usage: generation_sides.py JOB.json, under the interpreter that the system needs. `run` translates
all sentences, or the one with the given number if the job says `one_by_one`; `save` writes the
translations.

Shapes: B sentences, S source length.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from peer_generation import EoleSearch, HuggingFace, Hypothesis, JoeyNMT
from peer_models import EOS, by_length, padded
from worker import Channel, Stopwatch

TOKENS = 4096  # maximum per batch


class System(Protocol):
    """A system that translates."""

    num_parameters: int
    versions: str
    choices: list[Any]
    """Return batch sizes and uses of threads, of which the fastest is measured."""

    def translate(self, sources: list[list[int]], choice: Any) -> list[Hypothesis]:
        """Return the best translation of every source; sources have no end symbol."""


class Ours:
    """`ds_seq`, searching like `ds-seq generate`: packed weights, one batch per thread at a time.

    Args:
        job: settings written by `generation.py`.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        import torch
        from plain import beam_search

        from ds_seq.distributed import keep_freed_memory
        from ds_seq.models.packing import pack_weights
        from ds_seq.runs.open import load_run

        keep_freed_memory()  # as every ds-seq command does
        torch.set_num_threads(job["threads"])
        self._model: Any = load_run(job["run"], "best").model
        self.num_parameters = sum(p.numel() for p in self._model.parameters())
        pack_weights(self._model, int8=job["int8"])
        self._search = beam_search(
            beam=job["beam"],
            max_len_a=0,
            max_len_b=job["most"],
            min_len=0,
            max_positions=1024,
        )
        self.versions = f"torch {torch.__version__}"
        workers = {1, job["threads"]}
        self.choices = [(n, size) for n in sorted(workers) for size in (32, 64, 128, 256)]

    def translate(self, sources: list[list[int]], choice: Any) -> list[Hypothesis]:
        """See `System`; a choice is the number of parallel batches and of sentences per batch."""
        import numpy as np
        import torch
        from plain import batch_limits

        from ds_seq.generation.translate import cut_batches, search_batches

        workers, size = choice
        limits = batch_limits(max_tokens=TOKENS, max_sentences=size)
        batches = cut_batches(np.array([len(ids) + 1 for ids in sources]), limits)
        answer: list[Hypothesis] = [([], 0.0)] * len(sources)
        for batch, found in search_batches(
            self._model,
            self._search,
            batches,
            lambda i: [*sources[i], EOS],
            torch.device("cpu"),
            workers=workers,
        ):
            for sentence, hypotheses in zip(batch.tolist(), found, strict=True):
                answer[sentence] = (hypotheses[0].tokens, hypotheses[0].score)
        return answer


class Fairseq:
    """fairseq's generator, in batches of similar length.

    Args:
        job: settings written by `generation.py`.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        import fairseq
        import torch
        from fairseq.sequence_generator import SequenceGenerator
        from parity_fairseq_side import build

        torch.set_num_threads(job["threads"])
        self._model, dictionary = build(job["fairseq"], Path(job["fairseq"]["weights"]))
        self._generator = SequenceGenerator(
            [self._model], dictionary, beam_size=job["beam"], max_len_a=0, max_len_b=job["most"],
            min_len=0,
        )  # fmt: skip
        self.num_parameters = sum(p.numel() for p in self._model.parameters())
        self.versions = f"fairseq {fairseq.__version__}, torch {torch.__version__}"
        self.choices = [32, 64, 128]

    def translate(self, sources: list[list[int]], choice: Any) -> list[Hypothesis]:
        """See `System`; a choice is the number of sentences per batch."""
        import torch

        answer: list[Hypothesis] = [([], 0.0)] * len(sources)
        for batch in by_length(sources, choice):
            rows = [[*sources[i], EOS] for i in batch]
            lengths = torch.tensor([len(row) for row in rows])
            src = padded(rows, left=True)  # (B, S), as fairseq does
            sample = {"net_input": {"src_tokens": src, "src_lengths": lengths}}
            for i, found in zip(
                batch, self._generator.generate([self._model], sample), strict=True
            ):
                answer[i] = (found[0]["tokens"].tolist()[:-1], float(found[0]["score"]))
        return answer


class CTranslate2:
    """CTranslate2, with one worker that uses all threads, or one worker per thread.

    Args:
        job: settings written by `generation.py`.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        import ctranslate2

        folder, threads = Path(job["ctranslate2"]), job["threads"]
        vocabulary = (folder / "shared_vocabulary.json").read_text(encoding="utf-8")
        self._pieces: list[str] = json.loads(vocabulary)
        self._ids = {piece: i for i, piece in enumerate(self._pieces)}
        self._translators = {
            workers: ctranslate2.Translator(
                str(folder), inter_threads=workers, intra_threads=threads // workers,
                compute_type="int8" if job["int8"] else "float32",
            )
            for workers in sorted({1, threads})
        }  # fmt: skip
        self._options = {
            "beam_size": job["beam"],
            "max_decoding_length": job["most"] + 1,  # counts the end symbol
            "min_decoding_length": 0,
            "return_scores": True,
        }
        self.num_parameters = job["num_parameters"]
        self.versions = f"CTranslate2 {ctranslate2.__version__}"
        sizes = [(16, "examples"), (32, "examples"), (64, "examples"), (1024, "tokens")]
        self.choices = [(workers, *size) for workers in self._translators for size in sizes]

    def translate(self, sources: list[list[int]], choice: Any) -> list[Hypothesis]:
        """See `System`; a choice is the number of workers, the batch size and its unit."""
        workers, size, unit = choice
        found = self._translators[workers].translate_batch(
            [[self._pieces[i] for i in ids] for ids in sources],
            max_batch_size=size,
            batch_type=unit,
            **self._options,
        )
        return [([self._ids[p] for p in one.hypotheses[0]], one.scores[0]) for one in found]


SYSTEMS: dict[str, Callable[[dict[str, Any]], System]] = {
    "ds_seq": Ours,
    "fairseq": Fairseq,
    "CTranslate2": CTranslate2,
    "Hugging Face": HuggingFace,
    "JoeyNMT": JoeyNMT,
    "eole": EoleSearch,
}


def main() -> None:
    """Execute the commands of `generation.py`."""
    channel = Channel()  # before importing libraries that print
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    sources: list[list[int]] = job["sources"]
    system = SYSTEMS[job["system"]](job)
    some = sources[:: job["choose_from"]]
    system.translate(some[:8], system.choices[0])  # the first call is slower than the others
    choice = system.choices[0]  # the first searches one batch at a time
    if not job.get("one_by_one"):
        choice = min(system.choices, key=lambda each: _cost(system, some, each, job["threads"]))
    channel.ready(system.num_parameters, f"{system.versions}, batches of {choice}")
    found: list[Hypothesis] = []
    while (command := channel.command()) is not None:
        if command.verb == "save":
            Path(job["answer"]).write_text(json.dumps(found), encoding="utf-8")
            channel.done()
        else:
            part = [sources[command.number]] if job.get("one_by_one") else sources
            watch = Stopwatch()
            found = system.translate(part, choice)
            tokens = sum(len(ids) for ids, _ in found)
            channel.done(watch.block(len(part), tokens, math.nan))


def _cost(system: System, sources: list[list[int]], choice: Any, threads: int) -> float:
    """Return seconds, of processor time for one thread, which other load affects less."""
    watch = Stopwatch()
    system.translate(sources, choice)
    block = watch.block(0, 0, math.nan)
    return block.cpu_seconds if threads == 1 else block.seconds


if __name__ == "__main__":
    main()
