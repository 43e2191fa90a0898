"""Compare a folder for CTranslate2 with the model of which it was made.

Shapes: N target tokens, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ds_seq.config.data import DataConfig
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.data.expected import raw_files
from ds_seq.errors import UserError
from ds_seq.runs.formats.ctranslate2.usage import is_framed
from ds_seq.runs.formats.huggingface.comparison import sample_lines
from ds_seq.runs.formats.imported import inputs_of
from ds_seq.runs.open import DTYPES
from ds_seq.text.lines import decode_lines, read_blocks
from ds_seq.text.tokenizer import Tokenizers

TOLERANCES = {"fp32": 1e-4, "fp16": 3e-2, "bf16": 2e-1}
"""Largest difference of a log-probability relative to the largest one, by the format on disk: what
is computed from parameters is rounded there, too."""
_LONGEST, _LINES, _BEAM = 32, 16, 4  # ids of a line, lines, and hypotheses


class Differences(NamedTuple):
    """How CTranslate2 differs from the model, in log-probabilities of a token.

    Attributes:
        scores: largest difference for given targets.
        greedy: how far a token that greedy search chose is below the best one here.
        beam: largest difference for what beam search found, per token.
        largest: largest log-probability without its sign.
        lines: number of lines.
    """

    scores: float
    greedy: float
    beam: float
    largest: float
    lines: int

    @property
    def worst(self) -> float:
        """The largest one, relative to the largest log-probability."""
        return max(self.scores, self.greedy, self.beam) / self.largest


def check_written(
    folder: Path, model: nn.Module, tokenizers: Tokenizers, config: ExperimentConfig, dtype: str
) -> str:
    """Open a written folder with CTranslate2, and compare what it scores and translates.

    Args:
        folder: the folder.
        model: our model, in float32.
        tokenizers: our tokenizers.
        config: experiment of the model; its validation text is read if it is there.
        dtype: number format of the folder, `fp32`, `fp16` or `bf16`.

    Returns:
        What was compared, a sentence.

    Raises:
        UserError: CTranslate2 computes something else.
    """
    package = import_module("ctranslate2")
    translator = package.Translator(
        str(folder), compute_type="float32", inter_threads=1, intra_threads=torch.get_num_threads()
    )
    pairs, of_what = _validation_pairs(config.data), "of the validation text"
    if not pairs:
        lines = sample_lines(tokenizers)
        pairs, of_what = list(zip(lines, lines, strict=True)), "made of random pieces"
    twin = copy.deepcopy(model).to(DTYPES[dtype]).float().eval()
    found = compare(translator, twin, tokenizers, pairs)
    if not found.worst <= TOLERANCES[dtype]:
        raise UserError(
            f"--format ctranslate2: CTranslate2 {package.__version__} computes something else than "
            f"the run: log-probabilities of targets differ by up to {found.scores:.1e}, of "
            f"translations by {max(found.greedy, found.beam):.1e}; nothing is written"
        )
    return (
        f"CTranslate2 {package.__version__} scored and translated {found.lines} lines {of_what}: "
        f"log-probabilities differ by {found.scores:.0e} at most from those of the run; what its "
        f"greedy and beam search find has the same scores there ({found.beam:.0e} at most)."
    )


def compare(
    translator: Any, model: nn.Module, tokenizers: Tokenizers, pairs: Sequence[tuple[str, str]]
) -> Differences:
    """Compare scores of targets, and what greedy and beam search find step by step.

    Args:
        translator: `ctranslate2.Translator` of the folder.
        model: our model.
        tokenizers: our tokenizers.
        pairs: source and target of each line.
    """
    reader = _Reader(model, tokenizers)
    sources = [reader.source(source) for source, _ in pairs]
    targets = [reader.target(target) for _, target in pairs]
    given = [reader.source_pieces(ids) for ids in sources]
    names = [tokenizers.target.pieces(ids) for ids in targets]
    scored = translator.score_batch(given, names)
    differences, largest = [0.0], [1.0]
    eos = tokenizers.symbols.eos
    for source, target, theirs in zip(sources, targets, scored, strict=True):
        labels = [*target, eos]
        ours = reader.scores(source, labels)[range(len(labels)), labels]
        differences.append(_distance(ours, theirs.log_probs))
        largest.append(float(ours.abs().max()))
    opening = [tokenizers.target.pieces(tokenizers.symbols.opening)] * len(pairs)
    options = {
        "target_prefix": opening if opening[0] else None,
        "length_penalty": 0.0,
        "min_decoding_length": 0,
        "max_decoding_length": _LONGEST,
        "return_end_token": True,
        "return_scores": True,
    }
    greedy = translator.translate_batch(given, beam_size=1, **options)
    beam = translator.translate_batch(given, beam_size=_BEAM, **options)
    return Differences(
        max(differences),
        max(map(reader.shortfall, sources, greedy)),
        max(map(reader.misjudged, sources, beam)),
        max(largest),
        len(pairs),
    )


def _distance(ours: Tensor, theirs: Sequence[float]) -> float:
    if len(ours) != len(theirs):
        return float("inf")
    return float((ours - torch.tensor(theirs)).abs().max())


class _Reader:
    """Our side of the comparison."""

    def __init__(self, model: nn.Module, tokenizers: Tokenizers) -> None:
        self._model, self._tokenizers = model, tokenizers
        target = tokenizers.target
        self._ids = {piece: i for i, piece in enumerate(target.pieces(range(len(target))))}

    def source(self, line: str) -> list[int]:
        """Return the framed ids of a source line."""
        source = self._tokenizers.source
        return source.symbols.framed(source.encode(line)[:_LONGEST])

    def source_pieces(self, ids: list[int]) -> list[str]:
        """Return the pieces that CTranslate2 is given for framed ids of a source."""
        source = self._tokenizers.source
        return source.pieces(ids if is_framed(self._tokenizers) else ids[:-1])

    def target(self, line: str) -> list[int]:
        """Return the ids of a target line with what stands in front of it."""
        target = self._tokenizers.target
        return [*target.symbols.opening, *target.encode(line)[:_LONGEST]]

    @torch.no_grad()
    def scores(self, source: list[int], target: list[int]) -> Tensor:
        """Return the log-probabilities (N, V) at each token of a target."""
        start = self._tokenizers.symbols.start
        scores: Tensor = self._model(inputs_of(source, [start, *target[:-1]])).logits
        return scores.log_softmax(-1)

    def _found(self, source: list[int], result: Any) -> tuple[list[int], Tensor, int]:
        """Return the ids of a translation, our scores, and the number of tokens given to it."""
        ids = [self._ids[piece] for piece in result.hypotheses[0]]
        return ids, self.scores(source, ids), len(self._tokenizers.symbols.opening)

    def shortfall(self, source: list[int], result: Any) -> float:
        """Return how far a token of a greedy translation is below the best one, at most."""
        ids, scores, first = self._found(source, result)
        chosen = scores[range(len(ids)), ids]
        return float((scores.amax(-1) - chosen)[first:].max())

    def misjudged(self, source: list[int], result: Any) -> float:
        """Return by how much the score of a translation differs from ours, per token."""
        ids, scores, first = self._found(source, result)
        ours = float(scores[range(len(ids)), ids][first:].sum())
        return abs(ours - result.scores[0]) / len(ids)


def _validation_pairs(data: DataConfig) -> list[tuple[str, str]]:
    """Return the first lines of the validation text; none if it is not there."""
    for path in raw_files(data, "valid", must_exist=False):
        if all(file.is_file() for file in path.files):
            for block in islice(read_blocks([path], _LINES), 1):
                return [pair for pair in zip(*decode_lines(block), strict=True) if all(pair)]
    return []
