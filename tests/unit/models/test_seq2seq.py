"""Properties of the whole model: independence of rows, gradients, selection, recomputation."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.batches import encode, inputs_of, score
from tests.unit.models.sections import ROUTERS

PAD, VOCAB = 1, 23
SHAPES = [
    {"positions": positions, "norm_position": norm, "activation": activation}
    for positions, norm, activation in zip(
        ["sinusoidal", "learned", "rotary", "sinusoidal"],
        ["post", "pre", "pre", "pre"],
        ["relu", "gelu", "swiglu", "relu"],
        strict=True,
    )
]
MOE = {"num_experts": 4, "top_k": 2, "every": 2, "capacity_factor": None}
SPARSE = [
    *ROUTERS.values(),
    {**MOE, "residual": True},
    {**MOE, "shared_experts": 2},
    {**MOE, "conditional_budget": 0.5},
]
# all that is drawn, or dropped, in training
CHANCES = [
    {**MOE, "noise": "jitter", "output_masking": 0.3},
    {**MOE, "noise": "gumbel", "capacity_factor": 0.5, "drop": "random", "min_capacity": 1},
    {**MOE, "second_expert": "random"},
    {**MOE, "second_expert": "sampled", "capacity_factor": 0.5, "drop": "probability"},
    {**ROUTERS["cosine"], "noise": "gumbel"},
    {**ROUTERS["sigmoid"], "noise": "jitter"},
    {**MOE, "conditional_budget": 0.5, "conditional_dropout": 0.4},
]


@pytest.mark.parametrize("shape", [*SHAPES, *({"moe": moe} for moe in SPARSE)])
def test_a_row_does_not_depend_on_its_batch(build, pairs, shape):
    model = build(**shape).eval()
    logits = score(model, *pairs).logits
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(
        score(model, pairs.src[order], pairs.tgt[order]).logits, logits[order]
    )
    for row in range(len(order)):
        src, tgt = (side[row][side[row] != PAD][None] for side in pairs)
        alone = score(model, src, tgt).logits[0]
        torch.testing.assert_close(alone, logits[row, : tgt.size(1)], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [*SHAPES, *({"moe": moe} for moe in SPARSE)])
def test_more_padding_changes_nothing(build, pairs, shape):
    model = build(**shape).eval()
    padded = (torch.nn.functional.pad(side, (0, 5), value=PAD) for side in pairs)
    real = pairs.tgt != PAD
    expected = score(model, *pairs).logits[real]
    actual = score(model, *padded).logits[:, : pairs.tgt.size(1)][real]
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_what_stands_at_padded_places_is_never_read(build, pairs):
    model = build().eval()
    real = pairs.tgt != PAD
    before = score(model, *pairs).logits[real]
    with torch.no_grad():
        model.target_embedding.weight[PAD] = 100.0
    # the embedding is tied, so the score of the padding token itself may change
    others = torch.arange(VOCAB) != PAD
    torch.testing.assert_close(score(model, *pairs).logits[real][:, others], before[:, others])


def test_the_future_is_not_seen_and_the_past_is(build, pairs):
    model = build().eval()
    changed = pairs.tgt.clone()
    changed[:, 3] = 4 + (changed[:, 3] + 1) % (VOCAB - 4)
    everywhere = torch.ones_like(changed, dtype=torch.bool)
    before, after = (
        score(model, pairs.src, tgt, target_mask=everywhere).logits for tgt in (pairs.tgt, changed)
    )
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert (before[:, 3:] - after[:, 3:]).abs().amax(dim=(1, 2)).min() > 1e-4


@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "rotary"])
def test_the_order_of_the_source_matters(build, pairs, positions):
    model = build(positions=positions).eval()
    before, after = (score(model, src, pairs.tgt).logits for src in (pairs.src, pairs.src.flip(1)))
    assert (before - after).abs().max() > 1e-3


def test_scored_rows_are_the_rows_of_all(build, pairs):
    model = build()
    everywhere = torch.ones_like(pairs.tgt, dtype=torch.bool)
    every = model(inputs_of(*pairs, everywhere)).logits
    assert every.shape == (pairs.tgt.numel(), VOCAB)
    for mask in (pairs.tgt != PAD, pairs.tgt % 2 == 0):
        scored = model(inputs_of(*pairs, mask)).logits
        assert 0 < len(scored) == int(mask.sum()) < len(every)
        torch.testing.assert_close(scored, every[mask.flatten()])


def test_padding_is_what_the_mask_says_and_no_id(build, pairs):
    """Another id at padding, and the padding id at a real token."""
    model = build().eval()
    inputs = inputs_of(*pairs)
    expected = model(inputs).logits
    others = (side.masked_fill(side == PAD, 9) for side in pairs)
    source, target = others
    replaced = inputs._replace(source=source, target=target)
    torch.testing.assert_close(model(replaced).logits, expected)
    source = pairs.src.clone()
    source[0, 2] = PAD
    mask = torch.ones_like(source[:1], dtype=torch.bool)
    changed = model.encode(source[:1], mask).hidden
    hidden = model.encode(source[:1], source[:1] != PAD).hidden
    assert (changed[0, :2] - hidden[0, :2]).abs().max() > 1e-4


@pytest.mark.parametrize("moe", [None, *SPARSE])
def test_an_empty_batch_has_a_backward_pass_with_zero_gradients(build, moe):
    model = build(moe=moe)
    eos = torch.tensor([[2]])
    output = model(inputs_of(eos, eos, torch.tensor([[False]])))
    assert output.logits.shape == (0, VOCAB)
    (output.logits.sum() + 0.0 * sum(output.router_losses.values())).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(not gradient.any() for gradient in gradients)


@pytest.mark.parametrize(
    "shape",
    [
        {**SHAPES[0], "share_embeddings": "all"},
        {**SHAPES[1], "share_embeddings": "decoder"},
        {**SHAPES[2], "share_embeddings": "none"},
        *({"moe": moe} for moe in SPARSE),
        {"moe": {**MOE, "top_k": 1, "normalize_weights": "after_dropping"}},
    ],
)
def test_gradients_reach_every_parameter(build, pairs, shape):
    model = build(**shape)
    output = score(model, *pairs)
    logits = output.logits[pairs.tgt != PAD]
    (logits.square().sum() + sum(output.router_losses.values(), torch.tensor(0.0))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("moe", [None, *SPARSE, *CHANCES])
def test_checkpointing_changes_neither_loss_nor_gradients(build, pairs, moe):
    results = []
    for checkpointing in (False, True):
        model = build(
            activation_checkpointing=checkpointing,
            dropout=0.3,
            activation_dropout=0.2,
            attention_dropout=0.1,
            moe=moe,
        )
        torch.manual_seed(5)
        output = score(model, *pairs)
        loss = output.logits.square().mean() + sum(output.router_losses.values(), torch.tensor(0.0))
        loss.backward()
        results.append((loss, [p.grad for p in model.parameters()]))
    torch.testing.assert_close(*results)


def test_dropout_acts_in_training_only(build, pairs):
    model = build(dropout=0.3)
    assert not torch.equal(score(model, *pairs).logits, score(model, *pairs).logits)
    model.eval()
    assert torch.equal(score(model, *pairs).logits, score(model, *pairs).logits)


@pytest.mark.parametrize(
    ("share", "norm", "positions", "activation", "moe"),
    [
        *itertools.product(
            ["none", "decoder", "all"], ["pre", "post"], ["learned"], ["relu"], [None]
        ),
        ("all", "post", "sinusoidal", "swiglu", None),
        ("all", "post", "rotary", "gelu", MOE),
        *(("all", "pre", "rotary", "swiglu", moe) for moe in SPARSE),
    ],
)
def test_parameters_are_as_many_as_the_config_says(
    config, build, share, norm, positions, activation, moe
):
    options = {
        "share_embeddings": share,
        "norm_position": norm,
        "positions": positions,
        "activation": activation,
        "moe": moe,
    }
    counted = sum(parameter.numel() for parameter in build(**options).parameters())
    assert counted == config(**options).num_params(VOCAB).total


def test_sharing_embeddings_shares_them(build, pairs):
    def moved(share: str) -> tuple[bool, bool]:
        """Return whether the source side and the scores follow a change of the target's table."""
        model = build(share_embeddings=share).eval()
        token = int(pairs.src[0, 0])
        source = encode(model, pairs.src[:1, :1]).hidden
        unrelated = pairs.tgt[:1, :1].clone().fill_(4 if token != 4 else 5)
        scores = score(model, pairs.src[1:2] * 0 + 6, unrelated).logits
        with torch.no_grad():
            model.target_embedding.weight[token] += torch.randn(16)
        return (
            not torch.equal(source, encode(model, pairs.src[:1, :1]).hidden),
            not torch.equal(scores, score(model, pairs.src[1:2] * 0 + 6, unrelated).logits),
        )

    assert moved("none") == (False, False)
    assert moved("decoder") == (False, True)
    assert moved("all") == (True, True)


def test_decoding_before_training_leaves_training_possible(build, pairs):
    model = build(positions="rotary")
    with torch.inference_mode():
        cache = model.start_cache(encode(model, pairs.src), beam=2, max_length=4)
        model.decode_step(torch.full((8,), 2), cache)
    score(model, *pairs).logits.sum().backward()
