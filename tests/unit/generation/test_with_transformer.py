"""The search on the real model: its cache and the book-keeping of the search agree."""

from __future__ import annotations

import pytest
import torch

from ds_seq.config.model import ModelConfig, MoeConfig
from ds_seq.generation.beam_search import BeamSearch
from ds_seq.models.build import build_seq2seq
from ds_seq.models.seq2seq import Seq2SeqTransformer

VOCAB, PAD, EOS = 19, 1, 2


def make_model(moe: MoeConfig | None) -> Seq2SeqTransformer:
    config = ModelConfig(
        d_model=16, ffn_dim=24, num_heads=2, encoder_layers=2, decoder_layers=2, moe=moe
    )
    model = build_seq2seq(config, VOCAB, seed=3).eval()
    with torch.no_grad():  # an untrained model says nearly the same everywhere
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model


@pytest.mark.parametrize("moe", [None, MoeConfig(num_experts=4, top_k=2)], ids=["dense", "moe"])
def test_scores_are_those_of_one_full_forward(moe: MoeConfig | None) -> None:
    model = make_model(moe)
    src = torch.randint(4, VOCAB, (5, 7), generator=torch.Generator().manual_seed(0))
    for row, length in enumerate((7, 3, 5, 1, 6)):
        src[row, length - 1] = EOS
        src[row, length:] = PAD
    search = BeamSearch(beam=4, num_best=4, max_len_a=0, max_len_b=12, no_repeat_ngram=3)
    generated = set()
    for row, found in zip(src, search.search(model, src), strict=True):
        assert len(found) == 4
        for hypothesis in found:
            target = torch.tensor([[*hypothesis.tokens, EOS]])
            tgt_in = torch.tensor([[EOS, *hypothesis.tokens]])
            with torch.no_grad():
                logits = model(row[row != PAD][None], tgt_in).logits
            expected = logits.log_softmax(-1).gather(2, target[:, :, None]).flatten()
            torch.testing.assert_close(
                torch.tensor(hypothesis.token_scores), expected, atol=2e-4, rtol=1e-4
            )
            generated.add(tuple(hypothesis.tokens))
    assert len(generated) > 10
