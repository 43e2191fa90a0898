"""The large model of the generation benchmark computes the same as the small one."""

from __future__ import annotations

import pytest
import torch

from benchmarks.widening import grow
from ds_seq.config.model import TransformerConfig
from ds_seq.models.build import build_seq2seq
from ds_seq.models.seq2seq import Seq2SeqTransformer
from tests.batches import score

SMALL = {
    "d_model": 16, "ffn_dim": 24, "num_heads": 2, "encoder_layers": 1, "decoder_layers": 2,
    "norm_position": "pre", "max_positions": 12,
}  # fmt: skip
LARGE = {
    **SMALL, "d_model": 48, "ffn_dim": 72, "num_heads": 6, "encoder_layers": 3, "decoder_layers": 3,
    "positions": "learned",
}  # fmt: skip
VOCAB = 40


def built(section: dict[str, object]) -> Seq2SeqTransformer:
    """Return a model in which every parameter affects the output."""
    model = (
        build_seq2seq(TransformerConfig.model_validate(section), VOCAB, 1, 0, seed=1)
        .requires_grad_(False)
        .eval()
    )
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def test_a_wider_and_deeper_model_has_the_same_logits() -> None:
    small, large = built(SMALL), built(LARGE)
    grow(small, large)
    src = torch.randint(4, VOCAB, (3, 7))
    src[0, 5:] = 1  # padding
    tgt = torch.randint(4, VOCAB, (3, 5))
    expected = score(small, src, tgt).logits
    assert expected.std() > 0.5
    torch.testing.assert_close(score(large, src, tgt).logits, expected, atol=1e-4, rtol=1e-4)


def test_a_model_that_cannot_be_the_same_is_detected() -> None:
    with pytest.raises(AssertionError, match="differs from the small one"):
        grow(built({**SMALL, "norm_position": "post"}), built({**LARGE, "norm_position": "post"}))
