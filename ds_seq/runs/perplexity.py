"""How well a trained language model predicts text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ds_seq.config.task import LanguageModelingConfig
from ds_seq.data.corpora import Part
from ds_seq.data.lines_source import LinesSource
from ds_seq.data.text import TextDataset
from ds_seq.errors import UserError
from ds_seq.generation.build import build_limits
from ds_seq.generation.perplexity import figures_of, likelihoods, text_sizes
from ds_seq.generation.translate import ALONE
from ds_seq.names import LM_METRICS
from ds_seq.runs.card import LoadedRun


@dataclass(frozen=True)
class Blocks:
    """How a text is cut.

    Attributes:
        most: tokens that the model reads at once.
        context: how many of these are read again and not scored.
    """

    most: int
    context: int


@dataclass(frozen=True)
class TextFigures:
    """How well a model predicts some texts.

    Attributes:
        tokens: number of tokens that are scored, each once.
        nll: mean negative log-probability of a token, in nats.
        values: `perplexity` (of a token), `word_perplexity` and `bits_per_byte`, of all texts.
        by_text: the same values, by name of the text.
    """

    tokens: int
    nll: float
    values: dict[str, float]
    by_text: dict[str, dict[str, float]]

    @property
    def bits(self) -> float:
        """Mean negative log-probability of a token, in bits."""
        return self.nll / math.log(2)

    @property
    def perplexity(self) -> float:
        """Perplexity of a token."""
        return self.values["perplexity"]

    @property
    def word_perplexity(self) -> float:
        """Perplexity of a word, where an end of a line counts as a word."""
        return self.values["word_perplexity"]

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of UTF-8, by which models of other vocabularies compare."""
        return self.values["bits_per_byte"]


def text_blocks(
    run: LoadedRun, block_tokens: int | None, context_window: int | None, stride: int | None = None
) -> Blocks:
    """Return how a text is cut for a model.

    Args:
        run: a language model.
        block_tokens: tokens of a block; None: as in its training.
        context_window: how many of these are context; None: none, or by `stride`.
        stride: tokens that are new in each block, in place of `context_window`.

    Raises:
        UserError: the model is no language model, or the numbers do not fit it or each other.
    """
    if not run.card.reads_prompts:
        raise UserError(
            f"{run.source}: is a model {run.model_config.name}, which is no language model: it "
            "does not predict each token from those before it"
        )
    longest = run.card.max_positions
    task = None if run.experiment is None else run.experiment.task
    usual = task.block_tokens if isinstance(task, LanguageModelingConfig) else longest
    most = block_tokens or min(usual, longest)
    if most > longest:
        raise UserError(f"--block-tokens {most}: the model takes {longest:,} tokens; lower it")
    if stride is not None and stride > most:
        raise UserError(f"--stride {stride}: is more than the {most:,} tokens of a block")
    context = most - stride if stride else context_window or 0
    if context >= most:
        raise UserError(
            f"--context-window {context}: leaves no token of a block of {most:,} to score; lower it"
        )
    return Blocks(most, context)


def text_figures(
    run: LoadedRun,
    texts: Mapping[str, Sequence[str]],
    blocks: Blocks,
    max_tokens: int | None,
    device: torch.device,
) -> TextFigures:
    """Measure how well a language model predicts texts.

    Args:
        run: the model.
        texts: lines by name of the text, each a text of its own; an empty line ends a document.
        blocks: how they are cut.
        max_tokens: tokens of a batch; None: as in generation.
        device: device of the model.

    Raises:
        UserError: there is no text.
    """
    if not any(texts.values()):
        raise UserError(f"{', '.join(texts)}: there is no text to measure")
    dataset, tokenizer = _dataset(texts, run, blocks), run.tokenizers.target
    limits = build_limits(run.card.generation, run.card.max_positions)
    if max_tokens is not None:
        limits = replace(limits, max_tokens=max_tokens)
    found = likelihoods(run.model, dataset, tokenizer, limits, device, ALONE)
    sizes = text_sizes(dataset, tokenizer, with_empty_lines=True)
    tokens = sum(each.tokens for each in found.values())
    nll = sum(each.nll for each in found.values()) / tokens
    values: dict[str, float] = {}
    by_text: dict[str, dict[str, float]] = {name: {} for name in found}
    for name in LM_METRICS:
        values[name], each = figures_of(found, sizes, name)
        for text, value in each.items():
            by_text[text][name] = value
    return TextFigures(tokens, nll, values, by_text)


def _dataset(texts: Mapping[str, Sequence[str]], run: LoadedRun, blocks: Blocks) -> TextDataset:
    lines: list[str] = []
    parts: list[Part] = []
    tokenizer = run.tokenizers.target
    for name, text in texts.items():
        rows = range(len(lines), len(lines) + len(text))
        parts.append(Part(name, rows, (run.card.source_lang,) * 2))
        lines += [tokenizer.normalize(line) for line in text]
    source = LinesSource(tokenizer, lines)
    empty = len(tokenizer.symbols.framed([]))
    most, context = blocks.most, blocks.context
    return TextDataset(source, parts, "tokens", most - context, False, context, empty)
