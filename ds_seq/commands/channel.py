"""The noisy channel of `ds-seq rescore`: further models, their weights, the order of the result."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ds_seq.distributed import World
from ds_seq.errors import UserError
from ds_seq.generation.forced import Scorable
from ds_seq.generation.noisy_channel import GRID, Weights, best_first, combined, tuned
from ds_seq.generation.rescoring import PairScorer, Row, TextScorer, encode_rows
from ds_seq.runs.card import LoadedRun
from ds_seq.runs.decoding import run_decoding
from ds_seq.runs.fusion import load_language_model
from ds_seq.runs.open import load_packed
from ds_seq.scores.scoring import build_metric
from ds_seq.search.hypotheses import Hypothesis
from ds_seq.text.lines import check_counts, read_lines


class Judge(NamedTuple):
    """A further model and what it is to score."""

    score: PairScorer
    source: list[str]
    rows: list[Row]
    longest: tuple[int, int]
    """Most tokens of a target, and of a source."""
    run: LoadedRun

    def __call__(self, name: str, world: World) -> list[Hypothesis] | None:
        """Return its scores of all rows on rank 0; `name` is the file of the rows."""
        encoded = encode_rows(self.run.tokenizers, self.source, self.rows, name, *self.longest)
        return self.score(encoded, world.rank, world.size)


class Channel(NamedTuple):
    """The further models of a rescoring."""

    channel: Judge | None
    language_model: Judge | None
    reference: list[str] | None

    def __bool__(self) -> bool:
        return self.channel is not None or self.language_model is not None


def load_channel(
    args: argparse.Namespace,
    source: Sequence[str],
    rows: Sequence[Row],
    device: torch.device,
) -> Channel:
    """Load the models that the arguments name, and prepare what they are to score.

    Args:
        args: parsed arguments.
        source: source lines.
        rows: their translations.
        device: device of the models.

    Raises:
        UserError: a model or a file does not fit.
    """
    if args.tune is not None and args.channel is None and args.lm_run is None:
        raise UserError("--tune: there are no weights without --channel or --lm; add one of them")
    reference = None
    if args.tune is not None:
        reference = read_lines(args.tune)
        check_counts(source, args.source, reference, args.tune)
    channel = language_model = None
    if args.channel is not None:
        run = load_packed(args.channel, "best", None, device)
        texts = [run.tokenizers.source.normalize(row.text) for row in rows]
        back = [
            Row(place, run.tokenizers.target.normalize(source[row.line]), row.where)
            for place, row in enumerate(rows)
        ]
        channel = _judge(PairScorer, run.seq2seq, run, (texts, back), device)
    if args.lm_run is not None:
        run = load_language_model(args.lm_run, "--lm", None, device)
        texts = [run.tokenizers.target.normalize(row.text) for row in rows]
        own = [
            Row(place, text, row.where)
            for place, (text, row) in enumerate(zip(texts, rows, strict=True))
        ]
        language_model = _judge(TextScorer, run.searched, run, ([""] * len(rows), own), device)
    return Channel(channel, language_model, reference)


def _judge(
    kind: type[PairScorer],
    model: Scorable,
    run: LoadedRun,
    texts: tuple[list[str], list[Row]],
    device: torch.device,
) -> Judge:
    _, search, limits = run_decoding([run], run.card.generation)
    longest = run.card.max_positions, run.card.longest_source
    return Judge(kind(model, search, limits, device), *texts, longest, run)


def apply_channel(
    channel: Channel,
    own: Sequence[Hypothesis] | None,
    rows: Sequence[Row],
    args: argparse.Namespace,
    world: World,
    target_lang: str,
) -> tuple[list[Row], list[Hypothesis]] | None:
    """Return rows and hypotheses with all scores, the best of a line first, on rank 0.

    Args:
        channel: the models.
        own: the hypotheses as the first model scores them; None on other ranks.
        rows: the rows of the hypotheses.
        args: parsed arguments, for the weights.
        world: this process among all.
        target_lang: language of the translations, for BLEU.
    """
    judges = (channel.channel, channel.language_model)
    scores = [None if each is None else each(args.hypotheses, world) for each in judges]
    if own is None:
        return None
    lines = [row.line for row in rows]
    weights = Weights(args.channel_weight, args.lm_factor)
    if channel.reference is not None:
        metric, reference = build_metric("bleu", target_lang), channel.reference
        first, second = ((0.0,) if each is None else GRID for each in judges)
        weights, reached = tuned(
            lambda tried: combined(own, scores[0], scores[1], tried),
            lambda chosen: (
                metric.corpus_score(
                    [rows[row].text for row in chosen], [[reference[lines[row]] for row in chosen]]
                ).score
            ),
            lines,
            (first, second),
        )
        print(
            f"--channel-weight {weights.channel:g} --lm-weight {weights.language_model:g}: "
            f"BLEU {reached:.2f}",
            file=sys.stderr,
        )
    scored = combined(own, scores[0], scores[1], weights)
    order = best_first(lines, scored)
    return [rows[row] for row in order], [scored[row] for row in order]
