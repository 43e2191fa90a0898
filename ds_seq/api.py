"""ds_seq as a library: what the commands do, as functions.

    model = ds_seq.load("runs/x")  # a run folder or an export
    model.translate(["Hello.", "Goodbye."], beam=5)
    model.translate("Hello.", n_best=3)  # [Translation(text, score), ...]
    model.score(["Hello."], ["Hallo."])  # [TargetScore(log_prob, token_scores, score)]

    ds_seq.prepare("my.yaml")
    result = ds_seq.fit("my.yaml", "train.max_updates=1000")
    ds_seq.load(result.folder)

Shapes: N lines, S source length, D model width.
"""

from __future__ import annotations

import atexit
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor, nn

from ds_seq import distributed
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.generation import GenerationConfig
from ds_seq.config.load import read_experiment
from ds_seq.data.batch import pad_rows
from ds_seq.errors import UserError
from ds_seq.generation.build import changed_settings, check_n_best
from ds_seq.generation.output import plain_text
from ds_seq.generation.rescoring import PairScorer, Row, encode_rows
from ds_seq.generation.translate import (
    LineResult,
    SearchPlan,
    cut_batches,
    gather_lines,
    plan_lines,
    search_plan,
)
from ds_seq.generation.workers import default_workers
from ds_seq.plugins import nearest
from ds_seq.runs.card import LoadedRun, ModelCard
from ds_seq.runs.decoding import run_decoding, run_translator
from ds_seq.runs.open import DTYPES, INT8, load_packed, parse_device
from ds_seq.tasks.prepare import prepare as prepare_data
from ds_seq.text.lines import check_counts

if TYPE_CHECKING:
    from ds_seq.training.run import TrainingResult

__all__ = [
    "Encoding",
    "ModelCard",
    "TargetScore",
    "TrainedModel",
    "Translation",
    "UserError",
    "fit",
    "load",
    "prepare",
]

Experiment = str | Path | Mapping[str, Any] | ExperimentConfig


class Translation(NamedTuple):
    """A translation of a line."""

    text: str
    score: float
    """As `ds-seq generate` writes it: log-probability divided by the length penalty."""


class TargetScore(NamedTuple):
    """What a model thinks of a given translation."""

    log_prob: float
    """The sum of `token_scores`."""
    token_scores: list[float]
    """Log-probability of each piece of the target and of its end."""
    score: float
    """As `ds-seq rescore` writes it: log-probability divided by the length penalty."""


class Encoding(NamedTuple):
    """The encoder's view of some lines."""

    states: Tensor
    """(N, S, D); what the mask leaves out is 0."""
    mask: Tensor
    """(N, S) bool, True at tokens; False throughout for a line without text."""


class TrainedModel:
    """A trained model, ready for use; made by `load`.

    Args:
        run: the model and its card.
        device: where it is.

    Attributes:
        card: name, languages, tokenizers, longest input and search defaults of the model.
        module: the model itself, in evaluation mode.
    """

    def __init__(self, run: LoadedRun, device: torch.device) -> None:
        self.card: ModelCard = run.card
        self.module: nn.Module = run.model
        self._run, self._device = run, device

    @overload
    def translate(
        self, lines: str, *, beam: int | None = None, n_best: None = None, **options: Any
    ) -> str: ...

    @overload
    def translate(
        self, lines: str, *, beam: int | None = None, n_best: int, **options: Any
    ) -> list[Translation]: ...

    @overload
    def translate(
        self, lines: Sequence[str], *, beam: int | None = None, n_best: None = None, **options: Any
    ) -> list[str]: ...

    @overload
    def translate(
        self, lines: Sequence[str], *, beam: int | None = None, n_best: int, **options: Any
    ) -> list[list[Translation]]: ...

    def translate(
        self,
        lines: str | Sequence[str],
        *,
        beam: int | None = None,
        n_best: int | None = None,
        **options: Any,
    ) -> str | list[str] | list[Translation] | list[list[Translation]]:
        """Translate as `ds-seq generate` does.

        Args:
            lines: one sentence, or any number of them. A line without text has an empty
                translation; of one that is longer than the model takes, the start is translated
                and a warning given.
            beam: hypotheses kept per sentence; None: as the card says.
            n_best: how many translations of a line are wanted; None: the best alone, as text.
            **options: other fields of the experiment's section `generation`, such as
                ``length_penalty=0.6`` or ``sampling=True``.

        Returns:
            The translations, or with ``n_best`` lists of translations with scores; not in a list of
            lines where one line was given.

        Raises:
            UserError: an option is wrong.
        """
        settings = self._settings(options if beam is None else {"beam": beam, **options})
        count = 1 if n_best is None else n_best
        check_n_best(count, settings)
        translator = run_translator([self._run], settings, self._device, count)
        tokenizers = self.card.tokenizers
        plan = self._plan(_listed(lines), settings)
        searched = search_plan(
            translator.model,
            plan,
            translator.search,
            self._device,
            workers=default_workers(self._device),
        )

        def answer(found: LineResult) -> list[Translation]:
            return [
                Translation(plain_text(tokenizers.target, hypothesis.tokens), hypothesis.score)
                for hypothesis in found.hypotheses
            ]

        gathered = gather_lines(searched, answer)
        assert gathered is not None, "one process has all lines"
        if n_best is None:
            texts = [best.text for best, *_ in gathered[0]]
            return texts[0] if isinstance(lines, str) else texts
        return gathered[0][0] if isinstance(lines, str) else gathered[0]

    def score(
        self, sources: str | Sequence[str], targets: str | Sequence[str], **options: Any
    ) -> list[TargetScore]:
        """Score given translations as `ds-seq rescore` does.

        Args:
            sources: sentences.
            targets: a translation of each.
            **options: see `translate`; such as ``length_penalty=0``.

        Returns:
            One for each pair. One without any text has score 0.

        Raises:
            UserError: the numbers differ, or a target is longer than the model takes.
        """
        sources, targets = _listed(sources), _listed(targets)
        check_counts(sources, "sources", targets, "targets")
        _, search, limits = run_decoding([self._run], self._settings(options))
        source, target = self.card.tokenizers
        rows = [Row(line, target.normalize(text), line + 1) for line, text in enumerate(targets)]
        normalized = [source.normalize(text) for text in sources]
        encoded = encode_rows(
            self.card.tokenizers, normalized, rows, "targets", self.card.max_positions
        )
        _warn_of_cut(encoded.cut)
        scored = PairScorer(self._run.seq2seq, search, limits, self._device)(encoded)
        assert scored is not None, "one process has all rows"
        return [
            TargetScore(math.fsum(found.token_scores), found.token_scores, found.score)
            for found in scored
        ]

    @torch.inference_mode()
    def encode(self, lines: str | Sequence[str]) -> Encoding:
        """The encoder's last hidden states; of lines that are too long, those of the start.

        Args:
            lines: sentences.

        Raises:
            UserError: there is no line.
        """
        lines = _listed(lines)
        if not lines:
            raise UserError("lines: there is nothing to encode")
        settings = self.card.generation
        sources = self._plan(lines, settings).sources
        pad = self.card.tokenizers.symbols.pad
        rows = [sources[line].tolist() if line in sources else [] for line in range(len(lines))]
        lengths = np.array([len(row) for row in rows], np.int64)
        model, longest = self._run.seq2seq, max(int(lengths.max()), 1)
        limits = run_decoding([self._run], settings).limits
        mask = torch.zeros(len(rows), longest, dtype=torch.bool, device=self._device)
        states: Tensor | None = None
        # a line without text goes with the others, so that the width of the states is known
        for batch in cut_batches(np.maximum(lengths, 1), limits):
            eos = self.card.tokenizers.source.symbols.eos
            padded, real = pad_rows([rows[i] or [eos] for i in batch], pad).to(self._device)
            hidden = model.encode(padded, real).hidden  # (B, S, D)
            if states is None:
                states = hidden.new_zeros(len(rows), longest, hidden.shape[-1])
            has_text = torch.tensor([bool(rows[i]) for i in batch], device=self._device)
            real = real & has_text[:, None]
            width = hidden.shape[1]
            states[batch, :width] = hidden.masked_fill(~real[..., None], 0.0)
            mask[batch, :width] = real
        assert states is not None
        return Encoding(states, mask)

    def _settings(self, options: Mapping[str, Any]) -> GenerationConfig:
        """The card's search with other values."""
        for name in options:
            if name not in GenerationConfig.model_fields:
                known = ", ".join(GenerationConfig.model_fields)
                hint = nearest(name, GenerationConfig.model_fields)
                raise UserError(f"no option {name!r} of a search{hint}; there are {known}")
        return changed_settings(self.card.generation, options, str)

    def _plan(self, lines: Sequence[str], settings: GenerationConfig) -> SearchPlan:
        tokenizer = self.card.tokenizers.source
        normalized = [tokenizer.normalize(line) for line in lines]
        plan = plan_lines(tokenizer, normalized, run_decoding([self._run], settings).limits)
        _warn_of_cut([line + 1 for line in sorted(plan.long)])
        return plan


def load(
    path: str | Path,
    *,
    checkpoint: str = "best",
    device: str | torch.device | None = None,
    dtype: Literal["fp32", "bf16", "fp16", "int8"] | torch.dtype | None = None,
) -> TrainedModel:
    """Load a trained model.

    Args:
        path: a run folder, or a file or folder that `ds-seq export` made.
        checkpoint: ``best``, ``last``, the name of a checkpoint or a path.
        device: such as ``cpu`` or ``cuda:1``; None: a GPU where there is one.
        dtype: number format; None: as trained on a GPU, fp32 on a CPU. ``int8`` rounds the weights,
            on a CPU only.

    Raises:
        UserError: there is no such model, device or number format.
    """
    place = distributed.World().device if device is None else parse_device(str(device))
    run = load_packed(path, checkpoint, _dtype_name(dtype), place)
    return TrainedModel(run, place)


def prepare(experiment: Experiment, *overrides: str, force: bool = False) -> None:
    """Make the clean text, the vocabulary and the shards of an experiment; see `ds-seq prepare`.

    Args:
        experiment: a file, what could be written in one, or an experiment.
        *overrides: replace single settings, such as ``data.workers=4``.
        force: also make again what is up to date.

    Raises:
        UserError: the experiment or its text is of no use.
    """
    prepare_data(read_experiment(experiment, overrides), force)


def fit(
    experiment: Experiment, *overrides: str, resume: bool = False, overwrite: bool = False
) -> TrainingResult:
    """Train a model as `ds-seq train` does, in this process or in all that a launcher has started.

    Args:
        experiment: a file, what could be written in one, or an experiment.
        *overrides: replace single settings, such as ``train.max_updates=1000``.
        resume: resume from the run's last checkpoint; from the beginning where there is none yet.
        overwrite: delete what an earlier run of this name has left.

    Returns:
        Why it ended, the best score, and the run folder, which `load` takes.

    Raises:
        UserError: the experiment, its data or its run folder is of no use.
    """
    from ds_seq.training.run import run_training  # imports DeepSpeed

    atexit.register(distributed.shutdown)  # one process group for all trainings of the process
    return run_training(lambda: read_experiment(experiment, overrides), resume, overwrite)


def _listed(lines: str | Sequence[str]) -> list[str]:
    return [lines] if isinstance(lines, str) else list(lines)


def _dtype_name(dtype: str | torch.dtype | None) -> str | None:
    names = {value: name for name, value in DTYPES.items()}
    if isinstance(dtype, torch.dtype):
        dtype = names.get(dtype, str(dtype))
    known = [*DTYPES, INT8]
    if dtype is not None and dtype not in known:
        hint = nearest(dtype, known)
        raise UserError(f"no number format {dtype!r}{hint}; there are {', '.join(known)}")
    return dtype


def _warn_of_cut(lines: Sequence[int]) -> None:
    """Warn of lines, by numbers from 1, of which only the start is read."""
    if lines:
        shown = ", ".join(map(str, lines[:5])) + (", ..." if len(lines) > 5 else "")
        warnings.warn(
            f"{len(lines):,} source line(s) longer than the model can take were cut: {shown}",
            stacklevel=3,
        )
