"""Back-translation in training: the model itself makes the sources of text in the target language.

Sennrich et al., 2016, "Improving Neural Machine Translation Models with Monolingual Data",
arXiv:1511.06709, with translations by the present weights instead of another model's, as in
Lample et al., 2018, "Unsupervised Machine Translation Using Monolingual Corpora Only",
arXiv:1711.00043, and fairseq's `online_backtranslation`. One model translates in both directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ds_seq.criterions.base import Criterion, Current, Loss, Wrapper
from ds_seq.criterions.generator import Generator
from ds_seq.data.batch import Batch, Seq2SeqInputs, empty_seq2seq_batch, pad_rows, seq2seq_batch
from ds_seq.data.source import TokenBlock
from ds_seq.data.splitting import real_rows
from ds_seq.errors import UserError
from ds_seq.models.output import ModelOutput
from ds_seq.text.tokenizer import Symbols


@dataclass(frozen=True)
class TargetText:
    """A corpus whose sources the model makes.

    Attributes:
        rows: numbers of its examples, as in `Batch.indices`.
        back_tags: ids at the start of a sentence of it that is to be translated back.
        source_tags: ids at the start of the source that is made.
        num_target_tags: number of ids at the start of its targets that are no part of the text.
        generate: translates back; of its candidates the first one is taken.
        longest: most tokens of a sentence to be translated back, tags and end symbol included.
    """

    rows: range
    back_tags: tuple[int, ...]
    source_tags: tuple[int, ...]
    num_target_tags: int
    generate: Generator
    longest: int


class BackTranslation(Wrapper):
    """A criterion on batches in which the sources of some corpora are back-translations.

    They are made in training only, by the weights of the update, in evaluation mode; what is drawn
    depends on seed, update and sentence, so it is the same for any number of ranks.

    Args:
        base: the criterion.
        texts: corpora of text in the target language.
        symbols: special symbols, the same on both sides.
    """

    prepares = True

    def __init__(self, base: Criterion, texts: Sequence[TargetText], symbols: Symbols) -> None:
        super().__init__(base)
        self._texts, self._symbols = tuple(texts), symbols

    def prepare(self, batch: Batch, current: Current) -> Batch:
        """Return the batch with the sources that the model makes, prepared by the base."""
        if current.model.training:
            batch = self._translated(batch, current)
        return self.base.prepare(batch, current) if self.base.prepares else batch

    def __call__(self, output: ModelOutput, batch: Batch) -> Loss:
        """Compute the loss of the base."""
        return self.base(output, batch)

    def _translated(self, batch: Batch, current: Current) -> Batch:
        if not isinstance(batch.inputs, Seq2SeqInputs):
            raise UserError(
                "data.corpora: back_translate needs an encoder-decoder, and this task has other "
                "inputs; remove it"
            )
        sources = real_rows(batch.inputs.source, batch.inputs.source_mask, batch.num_sentences)
        targets = real_rows(batch.labels, batch.mask, batch.num_sentences)
        numbers, is_changed = batch.indices.tolist(), False
        for text in self._texts:
            places = [place for place, row in enumerate(numbers) if row in text.rows]
            if not places and current.any_rank is None:
                continue
            rows = [self._backward(targets[place], text) for place in places]
            found = text.generate(self._batch(batch, places, rows), current)
            for place, candidates in zip(places, found, strict=True):
                sources[place] = [*text.source_tags, *candidates[0], self._symbols.eos]
                is_changed = True
        if not is_changed:
            return batch
        made = pad_rows(sources, self._symbols.pad).to(batch.labels.device)
        inputs = batch.inputs._replace(
            source=made.ids, source_mask=made.mask, num_sources=sum(map(len, sources))
        )
        return replace(batch, inputs=inputs)

    def _backward(self, target: list[int], text: TargetText) -> list[int]:
        """Return the source of a translation back, of labels with their end symbol."""
        room = text.longest - len(text.back_tags) - 1
        return [*text.back_tags, *target[text.num_target_tags : -1][:room], self._symbols.eos]

    def _batch(
        self, batch: Batch, places: Sequence[int], rows: Sequence[list[int]]
    ) -> Batch[Seq2SeqInputs]:
        """Return a batch of these sources, with the numbers of the sentences at `places`."""
        device = batch.labels.device
        if not rows:
            return empty_seq2seq_batch(self._symbols).to(device)
        block = TokenBlock.of(rows)
        # the targets are not read
        indices = batch.indices.cpu()[list(places)]
        return seq2seq_batch(block, block, self._symbols, indices).to(device)
