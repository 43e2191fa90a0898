"""Minimum risk training against expectations over all sequences, and what is drawn for it."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from sacrebleu import sentence_bleu, sentence_chrf
from torch import Tensor

from benchmarks.plain import beam_search
from ds_seq.config.criterion import MinimumRiskConfig, ModelAndBaseConfig
from ds_seq.config.model import TransformerConfig
from ds_seq.criterions import build_criterion
from ds_seq.criterions import cross_entropy as module
from ds_seq.criterions.base import Current
from ds_seq.criterions.cross_entropy import cross_entropy
from ds_seq.criterions.generator import Generation
from ds_seq.criterions.likelihoods import token_likelihoods
from ds_seq.criterions.minimum_risk import MinimumRiskTraining
from ds_seq.criterions.model_and_base import ModelAndBase
from ds_seq.data.batch import Batch, empty_seq2seq_batch
from ds_seq.models.build import build_seq2seq
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.scores.sentence_errors import sentence_errors
from ds_seq.text.tokenizer import Symbols
from tests.batches import batch_of

SYMBOLS = Symbols(pad=1, eos=2, unk=3, start=2, bos=0)
WORDS, LONGEST = (3, 4, 5), 2
ALL = [list(each) for n in range(LONGEST + 1) for each in itertools.product(WORDS, repeat=n)]
BATCH = batch_of(
    torch.tensor([[4, 5, 2], [5, 2, 1], [3, 4, 2]]),
    torch.tensor([[4, 3, 2], [5, 2, 1], [4, 4, 2]]),
    torch.tensor([17, 3, 8]),
)
REFERENCES = [[4, 3], [5], [4, 4]]


class Spelling:
    """A tokenizer whose words are letters."""

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        return " ".join("?" if each == 3 else "ab"[each - 4] for each in ids)


def errors(found: Sequence[Sequence[int]], reference: Sequence[int]) -> list[float]:
    """Arbitrary numbers, 0 for the reference."""
    of = [zlib.crc32(repr((list(ids), list(reference))).encode()) / 2**32 for ids in found]
    return [0.0 if list(ids) == list(reference) else e for ids, e in zip(found, of, strict=True)]


def tiny_model(dropout: float = 0.0) -> Seq2SeqTransformer:
    config = TransformerConfig(
        d_model=8, ffn_dim=8, num_heads=2, encoder_layers=1, decoder_layers=1, dropout=dropout
    )
    return build_seq2seq(config, 6, 1, 0, seed=3)


def criterion_of(**options: Any) -> MinimumRiskTraining:
    generation = Generation(
        beam_search(SYMBOLS, min_len=0, max_len_a=0, max_len_b=LONGEST),
        Spelling(),  # type: ignore[arg-type]
        "en",
        seed=1,
    )
    criterion = build_criterion(MinimumRiskConfig(**options), None, (), generation)
    assert isinstance(criterion, MinimumRiskTraining)
    return criterion


def log_probs(model: Seq2SeqTransformer, sentence: int, targets: Sequence[list[int]]) -> Tensor:
    """log P of each target, from the definition."""
    inputs, values = BATCH.inputs, []
    length = int(inputs.source_mask[sentence].sum())
    for target in targets:
        labels = torch.tensor([[*target, 2]])
        alone = batch_of(inputs.source[sentence : sentence + 1, :length], labels)
        scores = model(alone.inputs).logits.log_softmax(1)
        values.append(scores.gather(1, labels.T).sum())
    return torch.stack(values)


@pytest.mark.parametrize("options", [{"sharpness": 1.0}, {"sharpness": 0.3, "ce_weight": 0.25}])
def test_loss_and_gradient_are_those_of_the_expectation_over_all_sequences(
    options: dict[str, Any],
) -> None:
    """A beam as wide as the set of all sequences finds all of them."""
    model = tiny_model().train()
    made = criterion_of(search="beam", candidates=len(ALL), **options)
    settings = (made.sharpness, made.include_reference, made.ce_weight, made.cross_entropy)
    criterion = MinimumRiskTraining(made.generate, errors, *settings)
    read = criterion.prepare(BATCH, Current(model, 0))
    assert read.num_sentences == 3 * len(ALL) and model.training
    loss = criterion(model(read.inputs), read)
    loss.total.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    model.zero_grad()
    weight, risk = options.get("ce_weight", 0.0), torch.zeros(())
    for sentence, reference in enumerate(REFERENCES):
        probs = (options["sharpness"] * log_probs(model, sentence, ALL)).softmax(0)
        costs = torch.tensor(errors(ALL, reference))
        risk = risk + (len(reference) + 1) * (probs * costs).sum()
    logits = model(BATCH.inputs).logits
    total = (1 - weight) * risk + weight * cross_entropy(logits, BATCH.real_labels, 0.1, "fairseq")
    total.backward()
    torch.testing.assert_close(loss.total, total, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss.parts["risk"], risk.detach(), rtol=1e-5, atol=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_the_same_is_drawn_in_any_batch_and_something_else_in_another_update() -> None:
    criterion, model = criterion_of(candidates=3), tiny_model(dropout=0.3).train()

    def drawn(rows: list[int], update: int) -> list[list[list[int]]]:
        inputs = BATCH.inputs
        part = batch_of(inputs.source[rows], BATCH.labels[rows], BATCH.indices[rows])
        return criterion.generate(part, Current(model, update))

    whole = drawn([0, 1, 2], 5)
    assert drawn([2], 5) + drawn([0, 1], 5) == [whole[2], whole[0], whole[1]]
    assert any(drawn([0, 1, 2], update) != whole for update in range(6, 9))
    assert model.training


@pytest.mark.parametrize("include", [True, False])
def test_the_reference_is_one_of_the_candidates_once(include: bool) -> None:
    criterion = criterion_of(search="beam", candidates=4, include_reference=include)
    read = criterion.prepare(BATCH, Current(tiny_model().train(), 0))
    given = read.candidates
    assert given is not None
    for sentence, reference in enumerate(REFERENCES):
        rows = (given.sentence == sentence).nonzero().flatten().tolist()
        ids = [read.labels[row][read.mask[row]].tolist()[:-1] for row in rows]
        assert len({tuple(each) for each in ids}) == len(ids)
        assert ids.count(reference) == 1 or not include
        assert [bool(given.is_reference[row]) for row in rows].count(True) == int(include)
    assert given.num_tokens == read.counted_tokens == BATCH.num_tokens


def test_a_rank_without_work_has_the_same_parts_and_a_validation_cross_entropy() -> None:
    criterion, model = criterion_of(ce_weight=0.5), tiny_model().train()
    with_routers = build_criterion(
        ModelAndBaseConfig(base=MinimumRiskConfig(ce_weight=0.5)),
        None,
        (),
        Generation(criterion.generate.search, Spelling(), "en", 1),  # type: ignore[arg-type]
    )
    full = with_routers.prepare(BATCH, Current(model, 0))
    read = with_routers.prepare(empty_seq2seq_batch(SYMBOLS), Current(model, 0))
    loss = with_routers(model(read.inputs), read)
    loss.total.backward()
    assert loss.total.item() == 0.0 and read.counted_tokens == 0
    assert set(loss.parts) == set(with_routers(model(full.inputs), full).parts)

    model.eval()
    assert criterion.prepare(BATCH, Current(model, 0)) is BATCH
    assert set(criterion(model(BATCH.inputs), BATCH).parts) == {"ce", "nll"}


def test_router_losses_count_by_the_tokens_of_the_data() -> None:
    criterion, model = criterion_of(), tiny_model().train()
    read = criterion.prepare(BATCH, Current(model, 0))
    output = model(read.inputs)._replace(router_losses={"load_balance": torch.tensor(1.5)})
    both = ModelAndBase(criterion, {}, ("load_balance",))
    expected = criterion(output, read).total + 1.5 * BATCH.num_tokens
    torch.testing.assert_close(both(output, read).total, expected)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 1e-3)]
)
@pytest.mark.parametrize("block", [2 * 11, 1 << 18])
def test_likelihoods_of_tokens_and_their_gradients_are_those_of_autograd(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, tolerance: float, block: int
) -> None:
    monkeypatch.setattr(module, "_CPU_ELEMENTS", block)  # two rows at a time, or all
    logits = (3 * torch.randn(7, 11)).to(dtype).requires_grad_()
    targets, weights = torch.randint(11, (7,)), torch.randn(2, 7)
    nll, spread = token_likelihoods(logits, targets)
    (weights[0] @ nll + 0.01 * weights[1] @ spread).backward()
    exact = logits.detach().double().requires_grad_()
    scores = exact.log_softmax(1)
    picked = -scores.gather(1, targets[:, None]).squeeze(1)
    (weights[0].double() @ picked - 0.01 * weights[1].double() @ scores.sum(1)).backward()
    torch.testing.assert_close(nll.double(), picked, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(spread.double(), -scores.sum(1), rtol=1e-5, atol=1e-4)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("metric", ["bleu", "chrf"])
def test_errors_are_sentence_scores_of_plain_text(metric: Any) -> None:
    reference, others = [4, 5, 4, 5, 5], [[4, 5, 4, 5, 5], [4, 5, 4, 4], [], [5, 5, 5, 4, 5]]
    measure, text = sentence_errors(metric, "en", Spelling()), Spelling().decode  # type: ignore[arg-type]
    score = sentence_bleu if metric == "bleu" else sentence_chrf
    expected = [1 - score(text(ids), [text(reference)]).score / 100 for ids in others]
    assert measure(others, reference) == pytest.approx(expected)
    assert measure(others, reference)[0] == pytest.approx(0.0) and expected[1] > 0.1


def test_the_batch_on_its_way_to_a_device_takes_the_candidates_along() -> None:
    read: Batch = criterion_of().prepare(BATCH, Current(tiny_model().train(), 0))
    moved = read.to("meta")
    assert moved.candidates is not None and moved.candidates.cost.is_meta
