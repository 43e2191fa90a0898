"""Embeddings of tokens from the bytes of their pieces."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ds_seq.config.model import DecoderOnlyConfig
from ds_seq.models import build_model
from ds_seq.modules.characters import CharacterEmbedding
from tests.unit.models.text_models import EXACT, check_steps, inputs_of

PIECES = ["<s>", "<pad>", "</s>", "<unk>", "a", "ab", "ba", "\u2581ab", "abcdefgh", "abcdefxy"]
VOCAB = len(PIECES)
NETWORK = {"filters": [[1, 3], [2, 4], [3, 5]], "embedding_dim": 3, "max_bytes": 6}
TEXTS = [[5, 6, 7, 8, 2], [9, 3, 2], [4, 2]]


def config(**options: Any) -> DecoderOnlyConfig:
    sizes = {"d_model": 8, "ffn_dim": 12, "num_heads": 2, "decoder_layers": 1, "dropout": 0.0}
    fields = {**sizes, "share_embeddings": "none", "character_embeddings": NETWORK, **options}
    return DecoderOnlyConfig.model_validate({"name": "decoder_only", **fields})


def made(**options: Any) -> Any:
    model: nn.Module = build_model(config(**options), VOCAB, 1, 0, seed=1)
    embedding = model.target_embedding
    assert isinstance(embedding, CharacterEmbedding)
    embedding.read_pieces(PIECES, pad=1, eos=2, unk=3, bos=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


BANDS = {"cutoffs": [4, 7], "factor": 2, "input": False}


@pytest.mark.parametrize("options", [{}, {"adaptive": BANDS}, {"output_bias": True}], ids=str)
@torch.no_grad()
def test_padding_mates_later_tokens_and_steps_change_nothing(options: dict[str, Any]) -> None:
    model = made(**options).eval()
    total = sum(parameter.numel() for parameter in model.parameters())
    assert config(**options).num_params(VOCAB).total == total
    check_steps(model, TEXTS, 4, 1e-3)


@torch.no_grad()
def test_an_embedding_is_that_of_the_bytes() -> None:
    embedding = made().target_embedding
    weights = {name: value.double() for name, value in embedding.named_parameters()}

    def slowly(piece: str) -> Tensor:
        codes = [byte + 1 for byte in piece.encode()][:6]
        x = weights["weight"][codes + [0] * (6 - len(codes))]  # (bytes, width)
        found = []
        for number, (size, _) in enumerate(NETWORK["filters"]):  # type: ignore[arg-type]
            place = f"convolutions.{number}"
            sums = [
                torch.einsum("owk,kw->o", weights[f"{place}.weight"], x[start : start + size])
                for start in range(6 - size + 1)
            ]
            found.append((torch.stack(sums).amax(0) + weights[f"{place}.bias"]).relu())
        y = torch.cat(found)
        for layer in range(2):
            both = weights[f"highway.{layer}.weight"] @ y + weights[f"highway.{layer}.bias"]
            value, gate = both.chunk(2)
            y = gate.sigmoid() * y + (1 - gate.sigmoid()) * value.relu()
        return weights["projection.weight"] @ y + weights["projection.bias"]

    found = embedding(torch.arange(VOCAB)[None])[0].double() / 8**0.5
    for token in range(4, VOCAB):
        torch.testing.assert_close(found[token], slowly(PIECES[token]), **EXACT)
    torch.testing.assert_close(found[8], found[9])  # bytes behind the sixth are not read
    torch.testing.assert_close(found[2], weights["symbols"][0], **EXACT)
    torch.testing.assert_close(found[3], weights["symbols"][1], **EXACT)
    assert not found[1].any()


def test_all_parameters_learn_from_any_batch() -> None:
    model = made()
    for texts in (TEXTS, [[2]], [[3, 2]]):
        model.zero_grad()
        model(inputs_of(texts)).logits.square().mean().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_bytes_are_no_part_of_the_weights() -> None:
    assert not any("bytes" in name for name in made().state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share_embeddings": "all"}, "share_embeddings: all, but with character_embeddings"),
        ({"embedding_dim": 4}, "embedding_dim: factorizes a table"),
        ({"adaptive": {"cutoffs": [4]}}, "adaptive.input: true, but character_embeddings"),
        ({"character_embeddings": {"max_bytes": 6}}, "filters: 7 bytes under a kernel are more"),
        ({"character_embeddings": {"filters": []}}, "filters"),
        ({"character_embeddings": {"filters": [[0, 3]]}}, "filters"),
    ],
)
def test_mistakes_name_the_field(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**options)
