"""The search on the real model: its cache and the book-keeping of the search agree."""

from __future__ import annotations

import pytest
import torch

from ds_seq.config.model import MoeConfig
from tests.batches import padded, score
from tests.unit.search.small_model import VOCAB, make_model
from tests.unit.search.table_model import SYMBOLS
from tests.values import beam_search

PAD, EOS = 1, 2


@pytest.mark.parametrize("moe", [None, MoeConfig(num_experts=4, top_k=2)], ids=["dense", "moe"])
def test_scores_are_those_of_one_full_forward(moe: MoeConfig | None) -> None:
    model = make_model(moe)
    src = torch.randint(4, VOCAB, (5, 7), generator=torch.Generator().manual_seed(0))
    for row, length in enumerate((7, 3, 5, 1, 6)):
        src[row, length - 1] = EOS
        src[row, length:] = PAD
    search = beam_search(SYMBOLS, beam=4, num_best=4, max_len_a=0, max_len_b=12, no_repeat_ngram=3)
    generated = set()
    for row, found in zip(src, search.search(model, *padded(src)), strict=True):
        assert len(found) == 4
        for hypothesis in found:
            target = torch.tensor([[*hypothesis.tokens, EOS]])
            tgt_in = torch.tensor([[EOS, *hypothesis.tokens]])
            with torch.no_grad():
                logits = score(model, row[row != PAD][None], tgt_in).logits
            expected = logits.log_softmax(-1).gather(2, target[:, :, None]).flatten()
            torch.testing.assert_close(
                torch.tensor(hypothesis.token_scores), expected, atol=2e-4, rtol=1e-4
            )
            generated.add(tuple(hypothesis.tokens))
    assert len(generated) > 10
