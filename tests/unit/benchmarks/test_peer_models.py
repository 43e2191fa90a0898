"""Other toolkits get every weight of a model once, and batches with every sentence once."""

from __future__ import annotations

import pytest
import torch

from benchmarks.parity_weights import fairseq_weights
from benchmarks.peer_models import EOLE_NAMES, JOEYNMT_NAMES, PAD, by_length, padded, renamed
from ds_seq.config.model import TransformerConfig
from ds_seq.models.build import build_seq2seq

SECTION = {
    "d_model": 16, "ffn_dim": 24, "num_heads": 2, "encoder_layers": 2, "decoder_layers": 2,
    "norm_position": "pre",
}  # fmt: skip
FAIRSEQ_PARTS = ("q_proj", "k_proj", "v_proj", "out_proj", ".fc1", ".fc2", "embed_tokens")
SOURCES = [[5] * length for length in (3, 9, 1, 4, 9, 2, 7)]


@pytest.mark.parametrize("names", [EOLE_NAMES, JOEYNMT_NAMES])
def test_no_two_weights_get_one_name(names: tuple[tuple[str, str], ...]) -> None:
    config = TransformerConfig.model_validate(SECTION)
    weights = fairseq_weights(build_seq2seq(config, 40, 1, 0, seed=1), config)
    found = dict(renamed(weights, names))
    assert len(found) == len(weights)
    assert sum(v.numel() for v in found.values()) == sum(v.numel() for v in weights.values())
    assert not [name for name in found if any(part in name for part in FAIRSEQ_PARTS)]


@pytest.mark.parametrize("size", [1, 3, 10])
def test_batches_have_each_sentence_once_longest_first(size: int) -> None:
    batches = list(by_length(SOURCES, size))
    order = [number for batch in batches for number in batch]
    assert sorted(order) == list(range(len(SOURCES)))
    assert all(len(batch) <= size for batch in batches)
    lengths = [len(SOURCES[number]) for number in order]
    assert lengths == sorted(lengths, reverse=True)


def test_padding_is_on_the_side_that_was_asked_for() -> None:
    rows = [[7, 8, 9], [5]]
    assert torch.equal(padded(rows), torch.tensor([[7, 8, 9], [5, PAD, PAD]]))
    assert torch.equal(padded(rows, left=True), torch.tensor([[7, 8, 9], [PAD, PAD, 5]]))
