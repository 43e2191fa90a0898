"""A trained model in Python: `TrainedModel`, which `ds_seq.load` returns.

Shapes: N lines, S source length, D model width.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor, nn

from ds_seq.config.generation import GenerationConfig
from ds_seq.data.batch import pad_rows
from ds_seq.errors import UserError
from ds_seq.generation.answers import Encoding, TargetScore, Translation
from ds_seq.generation.build import changed_settings, check_n_best
from ds_seq.generation.explain import PairExplanation, RoutingRecorder, describe_pair
from ds_seq.generation.forced import ForcedPair
from ds_seq.generation.output import plain_text
from ds_seq.generation.rescoring import EncodedRows, PairScorer, Row, encode_rows
from ds_seq.generation.translate import (
    LineResult,
    SearchPlan,
    cut_batches,
    gather_lines,
    plan_lines,
    search_plan,
)
from ds_seq.generation.workers import default_workers
from ds_seq.models import attach_adapters
from ds_seq.plugins import nearest
from ds_seq.reports.moe_watch import layer_names
from ds_seq.runs.card import LoadedRun, ModelCard
from ds_seq.runs.decoding import run_decoding, run_translator
from ds_seq.runs.perplexity import TextFigures, text_blocks, text_figures
from ds_seq.runs.tagger import tagger
from ds_seq.text.lines import check_counts
from ds_seq.text.tags import untagged, untagged_message


class TrainedModel:
    """A trained model, ready for use, as returned by `load`.

    Args:
        run: the model and its card.
        device: device of the model.

    Attributes:
        card: name, languages, tokenizers, maximum input length and search defaults of the model.
        module: the model itself, in evaluation mode.
    """

    def __init__(self, run: LoadedRun, device: torch.device) -> None:
        self.card: ModelCard = run.card
        self.module: nn.Module = run.model
        self._run, self._device = run, device
        self._recorder: RoutingRecorder | None = None

    def use_adapter(self, adapter: str | None) -> None:
        """Choose the adapter of the sentences that are translated, scored or encoded from now on.

        Args:
            adapter: as in `load`.

        Raises:
            UserError: the model has no such adapter.
        """
        tokenizer = self.card.tokenizers.source
        attach_adapters(self.module, self._run.model_config, tokenizer, adapter)

    @overload
    def translate(self, lines: str, *, n_best: None = None, **options: Any) -> str: ...

    @overload
    def translate(self, lines: str, *, n_best: int, **options: Any) -> list[Translation]: ...

    @overload
    def translate(
        self, lines: Sequence[str], *, n_best: None = None, **options: Any
    ) -> list[str]: ...

    @overload
    def translate(
        self, lines: Sequence[str], *, n_best: int, **options: Any
    ) -> list[list[Translation]]: ...

    def translate(
        self,
        lines: str | Sequence[str],
        *,
        beam: int | None = None,
        n_best: int | None = None,
        target_lang: str | Sequence[str] | None = None,
        **options: Any,
    ) -> str | list[str] | list[Translation] | list[list[Translation]]:
        """Translate lines, like `ds-seq generate`.

        Args:
            lines: one sentence, or a sequence of sentences. A line without text has an empty
                translation. A line that is too long for the model is truncated, with a warning.
            beam: beam size; None: as in the card.
            n_best: number of translations per line; None: only the best, as text.
            target_lang: language code of the translations, or one per line, for a model whose
                sources begin with a tag of it; None: the lines begin with their tags themselves.
            **options: other fields of the experiment's section `generation`, such as
                `length_penalty=0.6` or `sampling=True`.

        Returns:
            One translation per line, or with `n_best` a list of translations with scores per line.
            For a single line, only the entry of that line.

        Raises:
            UserError: an option is invalid, or the model has no tag of a language.
        """
        settings = self._settings(options if beam is None else {"beam": beam, **options})
        count = 1 if n_best is None else n_best
        check_n_best(count, settings)
        target = self.card.tokenizers.target
        found = [
            [
                Translation(plain_text(target, hypothesis.tokens), hypothesis.score)
                for hypothesis in line.hypotheses
            ]
            for line in self._search(_listed(lines), settings, count, target_lang)
        ]
        if n_best is None:
            texts = [best.text for best, *_ in found]
            return texts[0] if isinstance(lines, str) else texts
        return found[0] if isinstance(lines, str) else found

    def _search(
        self,
        lines: Sequence[str],
        settings: GenerationConfig,
        count: int,
        target_lang: str | Sequence[str] | None,
    ) -> list[LineResult]:
        """Search for translations; return those of each line."""
        translator = run_translator([self._run], settings, self._device, count)
        searched = search_plan(
            translator.model,
            self._plan(lines, settings, target_lang),
            translator.search,
            self._device,
            workers=default_workers(self._device),
        )
        gathered = gather_lines(searched, lambda found: found)
        assert gathered is not None, "one process has all lines"
        return gathered[0]

    def score(
        self, sources: str | Sequence[str], targets: str | Sequence[str], **options: Any
    ) -> list[TargetScore]:
        """Score given translations, like `ds-seq rescore`.

        Args:
            sources: source sentences.
            targets: one translation per source.
            **options: see `translate`; for example `length_penalty=0`.

        Returns:
            One score per pair; 0 for a pair without any text.

        Raises:
            UserError: the numbers of lines differ, or a target is too long for the model.
        """
        sources, targets = _listed(sources), _listed(targets)
        check_counts(sources, "sources", targets, "targets")
        _, search, limits = run_decoding([self._run], self._settings(options))
        encoded = self._encoded(sources, targets)
        scored = PairScorer(self._run.seq2seq, search, limits, self._device)(encoded)
        assert scored is not None, "one process has all rows"
        return [
            TargetScore(
                math.fsum(hypothesis.token_scores), hypothesis.token_scores, hypothesis.score
            )
            for hypothesis in scored
        ]

    def explain(
        self,
        source: str,
        target: str | None = None,
        *,
        num_candidates: int = 5,
        target_lang: str | None = None,
    ) -> PairExplanation:
        """Return what the model does with a pair, like the page of `ds-seq serve`.

        Args:
            source: source sentence.
            target: its translation; None: the best one that the model finds.
            num_candidates: number of the most probable pieces at each place of the target.
            target_lang: see `translate`.

        Returns:
            Scores and candidates of each piece, attention of each layer, and the experts that each
            token visits.

        Raises:
            UserError: the source is empty, the target is too long for the model, the model is a
                language model or has no tag of the language, or `num_candidates` is below 1.
        """
        if self.card.reads_prompts:
            raise UserError(
                f"{self.card.name}: is a language model, which has no source to look at"
            )
        if num_candidates < 1:
            raise UserError(f"num_candidates {num_candidates}: at least 1 is needed")
        if target is None:
            (found,) = self._search([source], self.card.generation, 1, target_lang)
            (row,) = self._plan([source], self.card.generation, target_lang).sources.values() or [
                ()
            ]
            pair = ForcedPair(list(map(int, row)), found.hypotheses[0].tokens)
        else:
            tagged = self._normalized([source], target_lang)
            (pair,) = self._encoded(tagged, [target]).pairs.values() or [ForcedPair([], [])]
        if len(pair.source) < 2:  # the end symbol alone
            raise UserError("source: is empty; there is nothing to explain")
        if self._recorder is None:  # it leaves hooks on the model
            self._recorder = RoutingRecorder(self.module)
        return describe_pair(
            self._run.seq2seq,
            self._recorder,
            self.card.tokenizers,
            pair,
            self._device,
            num_candidates,
            layer_names(self.module),
        )

    def perplexity(
        self,
        lines: Sequence[str],
        *,
        block_tokens: int | None = None,
        context_window: int | None = None,
        max_tokens: int | None = None,
    ) -> TextFigures:
        """Measure how well a language model predicts a text, like `ds-seq perplexity`.

        Args:
            lines: the text, a sentence or a paragraph per line; an empty line ends a document.
            block_tokens: tokens that the model reads at once; None: as in its training.
            context_window: how many of these are read again and not scored, so that a token has at
                least this context; None: none.
            max_tokens: tokens of a batch; None: as in generation.

        Raises:
            UserError: the model is no language model, there is no text, or the numbers do not fit
                the model or each other.
        """
        blocks = text_blocks(self._run, block_tokens, context_window)
        return text_figures(self._run, {"lines": lines}, blocks, max_tokens, self._device)

    @torch.inference_mode()
    def encode(self, lines: str | Sequence[str]) -> Encoding:
        """Return the encoder's last hidden states; lines that are too long are truncated.

        Args:
            lines: sentences.

        Raises:
            UserError: there are no lines.
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
        # lines without text are encoded, too, so that the width of the states is always known
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
        """Return the card's search settings with some values changed."""
        for name in options:
            if name not in GenerationConfig.model_fields:
                known = ", ".join(GenerationConfig.model_fields)
                hint = nearest(name, GenerationConfig.model_fields)
                raise UserError(f"no search option {name!r}{hint}; there are {known}")
        return changed_settings(self.card.generation, options, str)

    def _plan(
        self,
        lines: Sequence[str],
        settings: GenerationConfig,
        target_lang: str | Sequence[str] | None = None,
    ) -> SearchPlan:
        tokenizer = self.card.tokenizers.source
        normalized = self._normalized(lines, target_lang)
        plan = plan_lines(tokenizer, normalized, run_decoding([self._run], settings).limits)
        _warn_of_cut([line + 1 for line in sorted(plan.long)])
        _warn_of_untagged(normalized, self.card)
        return plan

    def _normalized(
        self, lines: Sequence[str], target_lang: str | Sequence[str] | None
    ) -> list[str]:
        """Return normalized sources, with the tags of languages."""
        normalized = [self.card.tokenizers.source.normalize(line) for line in lines]
        if target_lang is None:
            return normalized
        codes = _listed(target_lang)
        if not isinstance(target_lang, str) and len(codes) != len(lines):
            raise UserError(
                f"target_lang: {len(codes):,} language codes for {len(lines):,} lines; give "
                "one for all, or one per line"
            )
        place = "target_lang of line {}:" if len(codes) > 1 else None
        return tagger(self.card, codes, "target_lang", place)(normalized, 0)

    def _encoded(self, sources: Sequence[str], targets: Sequence[str]) -> EncodedRows:
        """Encode pairs, as many sources as targets."""
        source, target = self.card.tokenizers
        rows = [Row(line, target.normalize(text), line + 1) for line, text in enumerate(targets)]
        normalized = [source.normalize(text) for text in sources]
        most = self.card.max_positions, self.card.longest_source
        encoded = encode_rows(self.card.tokenizers, normalized, rows, "targets", *most)
        _warn_of_cut(encoded.cut)
        _warn_of_untagged(normalized, self.card)
        return encoded


def _listed(lines: str | Sequence[str]) -> list[str]:
    return [lines] if isinstance(lines, str) else list(lines)


def _warn_of_cut(lines: Sequence[int]) -> None:
    """Warn about truncated lines, given by their numbers from 1."""
    _warn_of_lines(lines, "source line(s) longer than the model can take were cut")


def _warn_of_untagged(lines: Sequence[str], card: ModelCard) -> None:
    """Warn about lines without a known language tag."""
    numbers = [number + 1 for number in untagged(lines, card.source_tags)]
    _warn_of_lines(numbers, untagged_message(card.source_tags))


def _warn_of_lines(lines: Sequence[int], what: str) -> None:
    """Warn about lines, given by their numbers from 1; do nothing if there are none."""
    if lines:
        shown = ", ".join(map(str, lines[:5])) + (", ..." if len(lines) > 5 else "")
        warnings.warn(f"{len(lines):,} {what}: {shown}", stacklevel=4)
