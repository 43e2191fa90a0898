"""fairseq_parity.py: the two searches to compare, behind the same interface.

Shapes: B sentences, S source length, T target length with its end symbol.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from parity_weights import FIRST_POSITION, fairseq_flags, fairseq_weights
from plain import batch_limits, beam_search
from safetensors.torch import save_file

from ds_seq.config.model import ModelConfig
from ds_seq.data.batch import seq2seq_batch
from ds_seq.data.shards import TokenBlock
from ds_seq.generation.translate import cut_batches, search_batches
from ds_seq.text.tokenizer import Symbols

EOS = 2
SYMBOLS = Symbols(pad=1, eos=EOS, unk=3, start=EOS)
MAX_LEN_A, MAX_LEN_B = 1.2, 10
BATCH = 64  # sentences per batch

HERE = Path(__file__).resolve().parent


class Setting(NamedTuple):
    """Settings of a search."""

    beam: int
    length_penalty: float


class Hypothesis(NamedTuple):
    """A hypothesis and its normalized score."""

    tokens: list[int]
    score: float


Answer = list[list[Hypothesis]]
"""Hypotheses of every sentence, the best first."""


@dataclass(frozen=True)
class Subject:
    """The model that both sides search with.

    Attributes:
        model: dense model in evaluation mode, float32.
        config: config of the model.
        vocab_size: size of the target vocabulary.
        max_len_b: a translation has at most 1.2 S + this many tokens.
    """

    model: Any
    config: ModelConfig
    vocab_size: int
    max_len_b: int = MAX_LEN_B


class Ours:
    """Our beam search, in padded batches of similar length like `ds-seq generate`.

    Args:
        subject: model to search with.
        num_best: hypotheses per sentence; None for the beam size.
        double: whether to compute the model in float64.
    """

    def __init__(self, subject: Subject, num_best: int | None = 1, double: bool = False) -> None:
        self._subject = subject
        self._num_best = num_best
        self._model = copy.deepcopy(subject.model).double() if double else subject.model

    def search(self, sources: Sequence[list[int]], setting: Setting) -> Answer:
        """Return the hypotheses of sources that end with the end symbol."""
        search = beam_search(
            beam=setting.beam,
            length_penalty=setting.length_penalty,
            max_len_a=MAX_LEN_A,
            max_len_b=self._subject.max_len_b,
            num_best=self._num_best or setting.beam,
            max_positions=self._subject.config.max_positions,
        )
        lengths = np.array([len(source) for source in sources])
        batches = cut_batches(lengths, batch_limits(max_sentences=BATCH))
        device = torch.device("cpu")
        answer: Answer = [[] for _ in sources]
        for batch, found in search_batches(
            self._model, search, batches, lambda i: sources[i], device
        ):
            for sentence, hypotheses in zip(batch, found, strict=True):
                answer[sentence] = [Hypothesis(h.tokens, h.score) for h in hypotheses]
        return answer

    @torch.no_grad()
    def force(self, source: list[int], tokens: list[int]) -> list[float]:
        """Return the log-probability of every token (T,) and of the end symbol."""
        sides = (TokenBlock.of([side]) for side in (source, [*tokens, EOS]))
        batch = seq2seq_batch(*sides, SYMBOLS)
        log_probs = self._model(batch.inputs).logits.log_softmax(-1)  # (T + 1, V)
        scores: list[float] = log_probs.gather(1, batch.real_labels[:, None]).flatten().tolist()
        return scores


class Fairseq:
    """fairseq's generator in a separate process.

    fairseq limits the length of a translation by the width of the padded batch, so it gets batches
    of equally long sentences, where its limit is the same as ours.

    Args:
        python: interpreter of fairseq's environment.
        subject: model to search with.
        threads: threads of the process.
    """

    def __init__(self, python: Path, subject: Subject, threads: int) -> None:
        self._python = python
        self._subject = subject
        self._threads = threads
        self.versions = ""

    def search(
        self,
        sources: Sequence[list[int]],
        settings: Sequence[Setting],
        double: bool = False,
        without_begin: bool = False,
    ) -> list[Answer]:
        """Search under each setting.

        Args:
            sources: sources with their end symbols.
            settings: settings to search with.
            double: whether to compute the model in float64.
            without_begin: whether to forbid the begin symbol, which fairseq may generate.

        Returns:
            All hypotheses of the beam, by setting.
        """
        by_length: dict[int, list[int]] = defaultdict(list)
        for sentence, source in enumerate(sources):
            by_length[len(source)].append(sentence)
        batches = [
            equal[first : first + BATCH]
            for _, equal in sorted(by_length.items())
            for first in range(0, len(equal), BATCH)
        ]
        order = [sentence for batch in batches for sentence in batch]
        rows = [[sources[sentence] for sentence in batch] for batch in batches]
        answers: list[Answer] = []
        job = {"double": double, "without_begin": without_begin}
        for found in self._ask({**job, "batches": rows, "settings": settings})["found"]:
            answer: Answer = [[] for _ in sources]
            for sentence, hypotheses in zip(order, found, strict=True):
                answer[sentence] = [Hypothesis(*hypothesis) for hypothesis in hypotheses]
            answers.append(answer)
        return answers

    def force(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
        """Return the result of `Ours.force` for pairs of a source and tokens."""
        forced = [[source, [*tokens, EOS]] for source, tokens in pairs]
        scores: list[list[float]] = self._ask({"forced": forced})["forced"]
        return scores

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        nothing: dict[str, Any] = {"batches": [], "settings": [], "forced": []}
        job = {
            "flags": fairseq_flags(self._subject.config),
            "vocab_size": self._subject.vocab_size,
            "first_position": FIRST_POSITION,
            "threads": self._threads,
            "double": False,
            "max_len_a": MAX_LEN_A,
            "max_len_b": self._subject.max_len_b,
            **nothing,
            **question,
        }
        with tempfile.TemporaryDirectory(prefix="ds_seq_parity_") as name:
            folder = Path(name)
            weights = fairseq_weights(self._subject.model, self._subject.config)
            save_file(weights, folder / "weights.safetensors")
            (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
            # fairseq 0.12 predates torch's check of pickles
            environment = {**os.environ, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
            command = [str(self._python), str(HERE / "parity_fairseq_side.py"), name]
            result = subprocess.run(
                command, stderr=subprocess.PIPE, text=True, check=False, env=environment
            )
            if result.returncode:
                raise SystemExit(f"fairseq's side failed:\n{result.stderr[-4000:]}")
            answer: dict[str, Any] = json.loads((folder / "answer.json").read_text("utf-8"))
        self.versions = answer["versions"]
        return answer
