"""moe_overhead.py: beam search with the MoE and the dense model, in one process.

Shapes: B sentences, S source length, K beam, N = B K hypotheses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from common import Goal, Section, Spread, table
from experiments import Recipe, write_experiment
from overhead_training import DENSE, EXPERTS, MOE
from plain import beam_search
from torch import Tensor
from turns import take_turns

from ds_seq.config.model import TransformerConfig
from ds_seq.data.batch import Padded, ParallelDataset
from ds_seq.data.shards import ShardReader
from ds_seq.errors import UserError
from ds_seq.generation.workers import default_workers, map_in_threads
from ds_seq.models.build import build_seq2seq
from ds_seq.models.cache import DecoderCache
from ds_seq.models.output import EncoderOutput
from ds_seq.models.packing import pack_weights
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.runs.open import load_run
from ds_seq.search.beam_search import BeamSearch
from ds_seq.text.sentencepiece import SentencePieceTokenizer

GENERATION_GOAL = 0.85
BEAM = 5
NO_END = 10**6  # tokens before the end symbol: more than the longest sentence has


@dataclass(frozen=True)
class Translating:
    """Models and text of the measurement.

    Attributes:
        recipe: the experiment, without experts; gives the text and the sizes of untrained models.
        folder: folder for temporary files.
        trained: run folders of a dense model and of one with experts, both with the vocabulary of
            the recipe; None for untrained models.
        sentences: number of sentences of the held-out text.
        batch: sentences per batch.
        threads: number of threads of this process.
        rounds: maximum number of rounds.
        seconds: time after which no round begins, provided there have been two.
    """

    recipe: Recipe
    folder: Path
    trained: tuple[str, str] | None
    sentences: int
    batch: int
    threads: int
    rounds: int
    seconds: float


class ShuffledTokens:
    """A model that is fed random tokens instead of those that the search selects.

    An untrained model repeats a few tokens, which would all visit the same experts: less work than
    in any real translation. The search itself uses the model's scores.

    Args:
        model: untrained model.
        vocab_size: number of tokens to draw from.
    """

    def __init__(self, model: Seq2SeqTransformer, vocab_size: int) -> None:
        self._model, self._vocab_size = model, vocab_size
        self._generator = torch.Generator()

    def encode(self, source: Tensor, source_mask: Tensor) -> EncoderOutput:
        """See `Seq2SeqTransformer`; restarts the random tokens, equal for every model."""
        self._generator.manual_seed(1)
        return self._model.encode(source, source_mask)

    def start_cache(self, encoded: EncoderOutput, beam: int, max_length: int) -> DecoderCache:
        """See `Seq2SeqTransformer`."""
        return self._model.start_cache(encoded, beam, max_length)

    def decode_step(self, tokens: Tensor, cache: DecoderCache) -> Tensor:
        """See `Seq2SeqTransformer`; feeds random tokens instead of `tokens` (N,)."""
        drawn = torch.randint(4, self._vocab_size, tokens.shape, generator=self._generator)
        return self._model.decode_step(drawn, cache)


def generation_section(settings: Translating) -> Section:
    """Compare beam search speed, with the same number of steps for both models."""
    config = write_experiment(
        settings.recipe.experiment(settings.folder / "generation"),
        settings.folder / "generation.yaml",
    )
    data = Path(config.data.dir)
    vocab = SentencePieceTokenizer.load(data / "vocab.model")
    batches = _batches(settings, data, vocab)
    models = _models(settings, vocab)
    search = beam_search(
        vocab.symbols,
        beam=BEAM,
        max_len_a=1.0,
        max_len_b=0,
        min_len=NO_END,
    )
    _check_lengths(search, models, batches[-1])
    sides = {name: _translation(search, model, batches) for name, model in models.items()}
    rounds = take_turns(sides, settings.rounds, settings.seconds)
    sentences = sum(len(batch.ids) for batch in batches)
    tokens = sum(int(batch.mask.sum()) for batch in batches)
    # a ratio of speeds is the inverse of a ratio of times
    ratios = {name: Spread.of(rounds.ratios(DENSE, name)) for name in sides}
    rows = [
        [
            name,
            Spread.of([sentences / s for s in rounds.seconds(name)]).text(1),
            ratios[name].text(2),
        ]
        for name in sides
    ]
    which = "trained" if settings.trained else "untrained (fed random tokens)"
    body = (
        f"{table(['model', 'sentences/s', 'to dense'], rows)}\n\n"
        f"Medians (and extremes) of {rounds.count} rounds: beam {BEAM}, {sentences:,} sentences of "
        f"the held-out text in batches of {settings.batch}, {which} models, fp32, "
        f"{settings.threads} threads, busy {rounds.busy(settings.threads):.0%} of the time. "
        "Both do the same steps: no translation may end before it has as many tokens as its "
        f"source, {tokens / sentences:.1f} on average."
    )
    goal = Goal(f"{MOE} to dense, beam search", ratios[MOE].median, GENERATION_GOAL, "x")
    return Section("Beam search", body, [goal])


def _batches(settings: Translating, data: Path, vocab: SentencePieceTokenizer) -> list[Padded]:
    """Return sources (B, S) of similar length, spread evenly over the held-out text."""
    dataset = ParallelDataset(ShardReader(data, "valid", vocab.fingerprint))
    count = min(settings.sentences, len(dataset))
    chosen = np.linspace(0, len(dataset) - 1, count).astype(np.int64)
    by_length = chosen[np.argsort(-dataset.lengths[chosen, 0].astype(int), kind="stable")]
    parts = (by_length[first : first + settings.batch] for first in range(0, count, settings.batch))
    batches = (dataset.collate(part, vocab.symbols).inputs for part in parts)
    return [Padded(batch.source, batch.source_mask) for batch in batches]


def _models(settings: Translating, vocab: SentencePieceTokenizer) -> dict[str, Any]:
    """Return the two models to compare, in evaluation mode."""
    if settings.trained is not None:
        runs = {
            name: load_run(run, "best")
            for name, run in zip((DENSE, MOE), settings.trained, strict=True)
        }
        for name, run in runs.items():
            if run.tokenizers.fingerprint != vocab.fingerprint:
                raise UserError(
                    f"{run.source}: the {name} model was trained with a vocabulary other than that "
                    f"of the text; give --tsv and --vocab-size as for that run"
                )
            pack_weights(run.model)  # like `ds-seq generate`
        return {name: run.model for name, run in runs.items()}
    sections: dict[str, Mapping[str, Any]] = {
        name: settings.recipe.experiment(settings.folder / "untrained", moe)["model"]
        for name, moe in ((DENSE, None), (MOE, EXPERTS))
    }
    return {
        name: ShuffledTokens(_untrained(section, vocab), len(vocab))
        for name, section in sections.items()
    }


def _untrained(section: Mapping[str, Any], vocab: SentencePieceTokenizer) -> Seq2SeqTransformer:
    model = build_seq2seq(TransformerConfig.model_validate(dict(section)), len(vocab), 1, 0, seed=1)
    pack_weights(model.requires_grad_(False).eval())
    return cast(Seq2SeqTransformer, model)


def _translation(search: BeamSearch, model: Any, batches: Sequence[Padded]) -> Callable[[], None]:
    workers = default_workers(torch.device("cpu"))

    def translate() -> None:
        # in parallel, like `ds-seq generate`
        searches = map_in_threads(lambda batch: search.search(model, *batch), batches, workers)
        assert len(list(searches)) == len(batches)

    return translate


def _check_lengths(search: BeamSearch, models: Mapping[str, Any], batch: Padded) -> None:
    """Check that both models do the same work."""
    wanted = batch.mask.sum(1).tolist()
    for name, model in models.items():
        found = [len(hypotheses[0].tokens) for hypotheses in search.search(model, *batch)]
        assert found == wanted, f"{name}: translations of {found} tokens, not {wanted}"
