"""The search on real models of every kind, against full forwards that know no cache and no beam."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ds_seq.config.model import TransformerConfig
from ds_seq.data.batch import Padded, pad_rows
from ds_seq.models.build import build_seq2seq
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.models.stack import Stack
from ds_seq.search.penalties import LengthPenalty, LengthPenaltyForm
from tests.batches import score
from tests.unit.models.sections import ROUTERS
from tests.unit.search.table_model import SYMBOLS
from tests.values import beam_search

BOS, PAD, EOS, UNK = range(4)
VOCAB = 17
KINDS: dict[str, dict[str, Any]] = {
    "dense": {},
    "pre_norm": {"norm_position": "pre", "positions": "learned"},
    "rotary": {"norm_position": "pre", "positions": "rotary"},
    "repeated_layer": {},
    **{router: {"moe": moe} for router, moe in ROUTERS.items()},
}
SOURCES = [
    [5, 9, 9, 4, 12, 8, EOS],
    [7, EOS],
    [4, 4, 11, EOS],
    [16, 3, 10, 9, 8, 7, 6, 5, 4, EOS],
    [13, 12, EOS],
]


def make_model(kind: str, vocab: int = VOCAB) -> Seq2SeqTransformer:
    sizes = {"d_model": 16, "ffn_dim": 24, "num_heads": 2, "encoder_layers": 2, "decoder_layers": 2}
    config = TransformerConfig.model_validate({**sizes, "max_positions": 64, **KINDS[kind]})
    model = build_seq2seq(config, vocab, 1, 0, seed=3).eval()
    if kind == "repeated_layer":  # first, second, first: three calls of two layers
        first, second = model.decoder.layers
        decoder = Stack([first, second, first], model.decoder.positions, None, 0.0, False, 0.0)
        model.decoder = decoder.eval()
    with torch.no_grad():  # an untrained model says nearly the same everywhere
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model.requires_grad_(False)


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> Seq2SeqTransformer:
    return make_model(request.param)


def pad(sources: list[list[int]]) -> Padded:
    return pad_rows(sources, PAD)


def next_log_probs(model: Seq2SeqTransformer, source: list[int], tokens: list[int]) -> Tensor:
    """Of each token (T + 1, V), after each prefix of a hypothesis of T tokens."""
    logits = score(model, torch.tensor([source]), torch.tensor([[EOS, *tokens]])).logits[0]
    return logits.double().log_softmax(-1)


def forced(model: Seq2SeqTransformer, source: list[int], tokens: list[int]) -> list[float]:
    log_probs = next_log_probs(model, source, tokens)
    return log_probs.gather(1, torch.tensor([*tokens, EOS])[:, None]).flatten().tolist()


def test_a_beam_of_one_takes_the_best_token_of_each_step(model: Seq2SeqTransformer) -> None:
    search = beam_search(SYMBOLS, beam=1, max_len_a=0.5, max_len_b=6, min_len=2)
    lengths = set()
    for source, (hypothesis,) in zip(SOURCES, search.search(model, *pad(SOURCES)), strict=True):
        tokens: list[int] = []
        for step in range(int(0.5 * len(source)) + 6):
            scores = next_log_probs(model, source, tokens)[-1]
            scores[[BOS, PAD] + [EOS] * (step < 2)] = -math.inf
            if (best := int(scores.argmax())) == EOS:
                break
            tokens.append(best)
        assert hypothesis.tokens == tokens
        assert hypothesis.score == pytest.approx(
            sum(forced(model, source, tokens)) / (len(tokens) + 1), abs=1e-4
        )
        lengths.add(len(tokens))
    assert len(lengths) > 1


@pytest.mark.parametrize(
    ("kind", "exponent", "form"),
    [
        *itertools.product(["dense"], [-0.7, 0.0, 0.6, 1.0, 1.4], ["fairseq", "gnmt"]),
        ("softmax", 1.0, "fairseq"),
    ],
)
def test_a_beam_as_wide_as_the_space_finds_the_best_of_all(
    kind: str, exponent: float, form: LengthPenaltyForm
) -> None:
    model, limit, source = make_model(kind, vocab=7), 3, [5, 4, 6, EOS]
    words = (UNK, 4, 5, 6)
    penalty, expected = LengthPenalty(exponent, form), []
    for length in range(1, limit + 1):
        everything = torch.tensor(list(itertools.product(words, repeat=length)))
        tgt_in = torch.cat([everything.new_full((len(everything), 1), EOS), everything], dim=1)
        target = torch.cat([everything, everything.new_full((len(everything), 1), EOS)], dim=1)
        src = torch.tensor([source]).expand(len(everything), -1)
        log_probs = score(model, src, tgt_in).logits.double().log_softmax(-1)
        totals = log_probs.gather(2, target[:, :, None]).flatten(1).sum(1)
        scores = totals / penalty.divisor(length + 1)
        expected += list(zip(scores.tolist(), everything.tolist(), strict=True))
    for num_best in (1, 8, 84):
        search = beam_search(
            SYMBOLS,
            beam=84,
            length_penalty=exponent,
            length_penalty_form=form,
            max_len_a=0,
            max_len_b=limit,
            num_best=num_best,
        )
        ((*found,),) = search.search(model, *pad([source]))
        best = sorted(expected, reverse=True)[:num_best]
        assert [h.tokens for h in found] == [tokens for _, tokens in best]
        assert [h.score for h in found] == pytest.approx([s for s, _ in best], abs=1e-4)


@pytest.mark.parametrize("settings", [{}, {"length_penalty": 0.3, "length_penalty_form": "gnmt"}])
def test_scores_are_those_of_a_full_forward(
    model: Seq2SeqTransformer, settings: dict[str, Any]
) -> None:
    search = beam_search(SYMBOLS, beam=4, num_best=4, max_len_a=0.5, max_len_b=7, **settings)
    penalty = LengthPenalty(search.length_penalty, search.length_penalty_form)
    generated = set()
    for source, found in zip(SOURCES, search.search(model, *pad(SOURCES)), strict=True):
        assert len(found) == 4
        for hypothesis in found:
            scores = forced(model, source, hypothesis.tokens)
            assert hypothesis.token_scores == pytest.approx(scores, abs=1e-4)
            total = sum(scores) / penalty.divisor(len(scores))
            assert hypothesis.score == pytest.approx(total, abs=1e-4)
            generated.add(tuple(hypothesis.tokens))
    assert len(generated) > 10


def test_a_result_is_its_sentences_own(model: Seq2SeqTransformer) -> None:
    """Alone, in any order, next to a much longer one, next to itself."""
    search = beam_search(SYMBOLS, beam=3, num_best=3, max_len_a=0.5, max_len_b=7)
    alone = [search.search(model, *pad([source]))[0] for source in SOURCES]
    long = [4 + n % 13 for n in range(40)] + [EOS]
    batches = [
        ([0, 1, 2, 3, 4], []),
        ([4, 2, 0, 3, 1], []),
        ([1], [long]),
        ([3, 1], [long, long]),
        ([2, 2, 2], []),
    ]
    for numbers, mates in batches:
        found = search.search(model, *pad([*(SOURCES[i] for i in numbers), *mates]))
        for number, hypotheses in zip(numbers, found, strict=False):
            expected = alone[number]
            assert [h.tokens for h in hypotheses] == [h.tokens for h in expected]
            assert [h.score for h in hypotheses] == pytest.approx(
                [h.score for h in expected], abs=1e-5
            )
    assert len({tuple(h.tokens) for (h, *_) in alone}) > 2
