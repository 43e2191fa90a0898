"""Sources that the model makes: for which sentences, of what, and by which weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.plain import beam_search
from ds_seq.criterions.back_translation import BackTranslation, TargetText
from ds_seq.criterions.base import Current
from ds_seq.criterions.cross_entropy import CrossEntropy
from ds_seq.criterions.generator import Generator, candidate_search
from ds_seq.data.batch import empty_seq2seq_batch
from ds_seq.models.seq2seq import Seq2SeqTransformer
from tests.batches import batch_of
from tests.unit.criterions.test_minimum_risk import SYMBOLS, tiny_model
from tests.values import draws

SEARCH = beam_search(SYMBOLS, beam=1, max_len_a=0, max_len_b=4)
# rows 10 to 19 are text in the target language, whose targets begin with a tag
BATCH = batch_of(
    torch.tensor([[4, 5, 2, 1], [3, 3, 3, 2], [5, 4, 4, 2]]),
    torch.tensor([[4, 3, 2, 1], [5, 4, 3, 2], [5, 3, 4, 2]]),
    torch.tensor([3, 12, 19]),
)
BACK, FORTH = 5, 4  # tags


def criterion_of(search: Any = SEARCH) -> BackTranslation:
    text = TargetText(range(10, 20), (BACK,), (FORTH, 3), 1, Generator(search, seed=1), longest=4)
    return BackTranslation(CrossEntropy(0.1, "fairseq"), [text], SYMBOLS)


def sources(batch: Any) -> list[list[int]]:
    return [
        row[real].tolist()
        for row, real in zip(batch.inputs.source, batch.inputs.source_mask, strict=True)
    ]


def translated(model: Seq2SeqTransformer, source: list[int]) -> list[int]:
    ids = torch.tensor([source])
    return SEARCH.search(model, ids, ids > 0)[0][0].tokens


def test_text_in_the_target_language_gets_its_translation_by_the_present_weights() -> None:
    model, criterion = tiny_model(dropout=0.5).train(), criterion_of()
    made = []
    for scale in (1.0, -1.0):
        with torch.no_grad():
            for parameter in model.decoder.parameters():
                parameter.mul_(scale)
        read = criterion.prepare(BATCH, Current(model, 7))
        assert model.training
        model.eval()
        # without the tag of the target, and cut to what the model takes
        expected = [translated(model, [BACK, *text, 2]) for text in ([4, 3], [3, 4])]
        model.train()
        ours = sources(read)
        assert ours == [[4, 5, 2], *([FORTH, 3, *each, 2] for each in expected)]
        assert read.inputs.num_sources == sum(map(len, ours))
        assert read.labels is BATCH.labels and read.num_tokens == BATCH.num_tokens
        made.append(ours)
    assert made[0] != made[1]


def test_what_is_drawn_depends_on_the_update_and_the_sentence_alone() -> None:
    model = tiny_model().train()
    criterion = criterion_of(candidate_search(SEARCH, 1, draws(), temperature=1.0))

    def made(rows: list[int], update: int) -> list[list[int]]:
        inputs = BATCH.inputs
        part = batch_of(inputs.source[rows], BATCH.labels[rows], BATCH.indices[rows])
        return sources(criterion.prepare(part, Current(model, update)))

    whole = made([0, 1, 2], 3)
    assert made([2, 1], 3) == [whole[2], whole[1]]
    assert any(made([0, 1, 2], update) != whole for update in range(4, 9))


def test_pairs_validations_and_empty_batches_stay_as_they_are() -> None:
    model, criterion = tiny_model().train(), criterion_of()
    pairs = replace(BATCH, indices=torch.tensor([0, 9, 20]))
    assert criterion.prepare(pairs, Current(model, 0)) is pairs
    empty = empty_seq2seq_batch(SYMBOLS)
    assert criterion.prepare(empty, Current(model, 0)) is empty
    # where a forward is a collective, a rank without text takes part
    asked: list[bool] = []
    collective = Current(model, 0, lambda flag: asked.append(flag) or False)  # type: ignore[func-returns-value]
    assert criterion.prepare(pairs, collective) is pairs and asked == [False]
    model.eval()
    assert criterion.prepare(BATCH, Current(model, 0)) is BATCH


@pytest.mark.parametrize("mode", [True, False])
def test_the_base_is_told_what_the_wrapper_is_told(mode: bool) -> None:
    criterion = criterion_of()
    criterion.train(mode)
    assert criterion.base.training is criterion.training is mode
    model = tiny_model()
    output = model(BATCH.inputs)
    torch.testing.assert_close(
        criterion(output, BATCH).total, criterion.base(output, BATCH).total, rtol=0, atol=0
    )
