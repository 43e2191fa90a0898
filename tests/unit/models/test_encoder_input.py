"""A language model as the input of the encoder: its definition, padding, gradients, counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from ds_seq.config.flops import forward_flops, training_flops
from ds_seq.config.model import TransformerConfig
from ds_seq.data.batch import Seq2SeqInputs
from ds_seq.models import build_model
from ds_seq.models.decoder_only import DecoderOnlyTransformer
from ds_seq.models.encoder_input import LanguageModelInput
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.models.stack import real_rows
from ds_seq.modules.characters import CharacterEmbedding

VOCAB, START, PAD, WIDTH = 23, 2, 1, 12
ONE = {"name": "decoder_only", "d_model": WIDTH, "decoder_layers": 2, "num_heads": 2, "ffn_dim": 16}
TWO = {"name": "encoder_only", "d_model": 16, "encoder_layers": 2, "num_heads": 2, "ffn_dim": 16}
LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "causal": {**ONE, "norm_position": "pre", "dropout": 0.3},
    "untied": {**ONE, "share_embeddings": "none", "positions": "rotary", "embedding_dim": 4},
    "biased": {**ONE, "output_bias": True, "d_model": 16, "positions": "learned"},
    "adaptive": {**ONE, "adaptive": {"cutoffs": [8, 16], "factor": 2}, "decoder_repeats": 2},
    "bytes": {
        **ONE,
        "share_embeddings": "none",
        "character_embeddings": {"filters": [[1, 4], [2, 5]], "max_bytes": 4},
    },
    "masked": {**TWO, "norm_position": "pre"},
    "dense": {**TWO, "lm_head": "dense", "output_bias": True},
    "retention": {**ONE, "decoder_mixer": "retention", "positions": "none"},
}
SOURCES = [[5, 6, 7, 8, 2], [9, 10, 2], [11, 2]]


def config(which: str = "causal", **options: Any) -> TransformerConfig:
    section = {"max_positions": 65, **LANGUAGE_MODELS[which]}
    read = {"path": "lm", "model": section, **options}
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "num_heads": 2}
    rest = {"ffn_dim": 24, "dropout": 0.0, "max_positions": 64}
    return TransformerConfig.model_validate({**sizes, **rest, "encoder_input": read})


def made(section: TransformerConfig) -> Seq2SeqTransformer:
    model = build_model(section, VOCAB, 1, 0, seed=1)
    assert isinstance(model, Seq2SeqTransformer) and model.encoder_input is not None
    model.encoder_input.begin_with(START)
    table = model.encoder_input.model.target_embedding
    if isinstance(table, CharacterEmbedding):
        table.read_pieces([f"p{n}" for n in range(VOCAB)], pad=PAD, eos=START, unk=3, bos=None)
    if model.encoder_input.mix is not None:  # not all layers alike
        torch.nn.init.normal_(model.encoder_input.mix.weights, generator=_generator())
    return model


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def padded(rows: list[list[int]], more: int = 0) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows)) + more
    ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
    return ids, ids != PAD


def inputs(rows: list[list[int]]) -> Seq2SeqInputs:
    source, mask = padded(rows)
    target, real = padded([[START, *row[:-1]] for row in rows])
    counts = (int(real.sum()), int(mask.sum()))
    return Seq2SeqInputs(source, mask, target, real, *counts)


def slow(part: LanguageModelInput, row: list[int]) -> Tensor:
    """The states of one sentence (S, D) by the formulas."""
    model, first = part.model, 0
    if isinstance(model, DecoderOnlyTransformer):
        row, first = [START, *row], 1
    tokens = torch.tensor([row])
    mask = torch.ones_like(tokens, dtype=torch.bool)
    if isinstance(model, DecoderOnlyTransformer):
        result = model.states_of(tokens, mask, "hidden", real_rows(mask))
    else:
        result = model.encoded(tokens, mask, "hidden")
    x = result.hidden
    if part.mix is not None:
        powers = part.mix.weights.exp()
        x = torch.zeros_like(x)
        layers = [model.target_embedding(tokens), *result.states[:-1], result.hidden]
        for power, h in zip(powers, layers, strict=True):
            spread = (h.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
            x = x + part.mix.scale * power / powers.sum() * (h - h.mean(-1, keepdim=True)) / spread
    x = x if part.projection is None else x @ part.projection.weight.T
    return x[0, first:]


@pytest.mark.parametrize("layers", ["last", "mix"])
@pytest.mark.parametrize("which", LANGUAGE_MODELS)
def test_it_equals_the_definition_whatever_the_batch(which: str, layers: str) -> None:
    section = config(which, layers=layers)
    model = made(section).eval()
    size = section.num_params(VOCAB)
    assert size.total == sum(parameter.numel() for parameter in model.parameters())
    part = model.encoder_input
    with torch.inference_mode():
        together = part(*padded(SOURCES, more=2), sum(map(len, SOURCES)))
        for number, row in enumerate(SOURCES):
            found = together[number, : len(row)]
            torch.testing.assert_close(found, slow(part, row), atol=1e-5, rtol=1e-4)
        whole = model(inputs(SOURCES)).logits
        alone = torch.cat([model(inputs([row])).logits for row in SOURCES])
        torch.testing.assert_close(whole, alone, atol=1e-5, rtol=1e-4)


def test_the_start_symbol_is_read_and_a_masked_model_sees_what_follows() -> None:
    other = [[5, 6, 7, 12, 2]]
    for which, is_causal in (("causal", True), ("masked", False)):
        part = made(config(which)).eval().encoder_input
        with torch.inference_mode():
            first, second = part(*padded(SOURCES[:1])), part(*padded(other))
            assert torch.equal(first[:, :3], second[:, :3]) == is_causal
            part.begin_with(START + 1)
            assert torch.equal(part(*padded(other)), second) != is_causal


@pytest.mark.parametrize("layers", ["last", "mix"])
def test_a_frozen_one_is_left_as_it_is(layers: str) -> None:
    model = made(config(layers=layers)).train()
    part = model.encoder_input
    before = {name: value.clone() for name, value in part.model.named_parameters()}
    assert torch.equal(part(*padded(SOURCES)), part(*padded(SOURCES)))  # without dropout
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    model(inputs(SOURCES)).logits.square().sum().backward()
    optimizer.step()
    for name, value in part.model.named_parameters():
        assert value.grad is None and torch.equal(value, before[name]), name
    others = [name for name, value in model.named_parameters() if value.grad is None]
    assert all(name.startswith("encoder_input.model.") for name in others)


@pytest.mark.parametrize("which", LANGUAGE_MODELS)
def test_all_of_a_trained_one_learns(which: str) -> None:
    model = made(config(which, weights="trained", layers="mix")).train()
    if which == "causal":
        part = model.encoder_input
        assert not torch.equal(part(*padded(SOURCES)), part(*padded(SOURCES)))
    everything = [[token, 2] for token in range(2, VOCAB)]
    model(inputs(everything)).logits.square().sum().backward()
    assert [name for name, value in model.named_parameters() if value.grad is None] == []


def test_a_cached_search_reads_the_same_source() -> None:
    model = made(config(layers="mix")).eval()
    batch = inputs(SOURCES)
    with torch.inference_mode():
        full = model(batch).logits
        encoded = model.encode(batch.source, batch.source_mask)
        cache = model.start_cache(encoded, 1, batch.target.size(1))
        steps = [model.decode_step(tokens, cache) for tokens in batch.target.T]
        found = torch.stack(steps, 1)[batch.target_mask]
    torch.testing.assert_close(found, full, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("which", LANGUAGE_MODELS)
def test_operations_are_those_of_both_models(which: str) -> None:
    frozen, trained = config(which), config(which, weights="trained")
    plain = frozen.model_copy(update={"encoder_input": None})
    forward, without = forward_flops(frozen, VOCAB), forward_flops(plain, VOCAB)
    assert forward is not None and without is not None
    read = [a - b for a, b in zip(forward, without, strict=True)]
    assert read[0] > 0 and read[1] == read[3] == read[4] == 0
    both, all_of_it = training_flops(frozen, VOCAB), training_flops(trained, VOCAB)
    assert both is not None and all_of_it is not None
    assert all_of_it == pytest.approx(tuple(3 * each for each in forward))
    width = frozen.encoder_input.section.d_model if frozen.encoder_input else 0
    projection = 0 if width == 16 else 2 * width * 16
    saved = [a - b for a, b in zip(all_of_it, both, strict=True)]
    assert saved == pytest.approx([2 * (read[0] - projection), 0, 2 * read[2], 0, 0])


@pytest.mark.parametrize(
    "read, message",
    [
        ({"model": {"name": "transformer"}}, "lm is a model transformer; name a run of a model"),
        ({"model": {**ONE, "max_positions": 64}}, "64 is more than the 63 source tokens"),
        ({"model": {**ONE, "moe": {"num_experts": 2}}}, "lm has model.moe, which is not supported"),
        ({"model": {**ONE, "ffn_dim": 0}}, "encoder_input.model: ffn_dim"),
        ({"layers": "first"}, "encoder_input.layers"),
    ],
)
def test_what_does_not_fit_is_refused(read: dict[str, Any], message: str) -> None:
    section = config().model_dump()
    section["encoder_input"] = {**section["encoder_input"], **read}
    with pytest.raises(ValidationError, match=message):
        TransformerConfig.model_validate(section)
