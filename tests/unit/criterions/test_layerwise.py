"""Layer-wise distillation: worked numbers, independence of the batch, which layers, gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ds_seq.config.distillation import AttentionConfig, HiddenConfig
from ds_seq.criterions import attention_term, hidden_term
from ds_seq.criterions.layerwise import attention_loss, hidden_loss
from ds_seq.data.batch import Batch, empty_seq2seq_batch
from ds_seq.models.output import LayerOutputs
from ds_seq.text.tokenizer import Symbols
from tests import batches

PAD, EOS = 1, 2
KINDS = ("encoder", "decoder", "cross")


def batch_of(source: Sequence[int], target: Sequence[int]) -> Batch:
    """Return sentences of these lengths."""
    src, tgt = (torch.full((len(lengths), max(lengths)), 5) for lengths in (source, target))
    for row, lengths in enumerate(zip(source, target, strict=True)):
        src[row, lengths[0] :], tgt[row, lengths[1] :] = PAD, PAD
    return batches.batch_of(src, tgt)


EMPTY = empty_seq2seq_batch(Symbols(pad=PAD, eos=EOS, unk=3, start=EOS))


def made(
    batch: Batch, depths: tuple[int, int], seed: int, heads: int = 2, width: int = 4
) -> LayerOutputs:
    """Return random layer outputs for a batch; maps are 0 at masked keys."""
    generator = torch.Generator().manual_seed(seed)
    rows, source, target = *batch.inputs.source.shape, batch.labels.shape[1]
    padding = ~batch.inputs.source_mask[:, None, None]
    future = torch.ones(target, target).triu(1).bool()

    def states(depth: int, length: int) -> tuple[Tensor, ...]:
        return tuple(torch.randn(rows, length, width, generator=generator) for _ in range(depth))

    def maps(depth: int, length: int, keys: int, unseen: Tensor) -> tuple[Tensor, ...]:
        scores = (torch.randn(rows, heads, length, keys, generator=generator) for _ in range(depth))
        return tuple(s.masked_fill(unseen, -math.inf).softmax(-1) for s in scores)

    return LayerOutputs(
        states(depths[0], source),
        states(depths[1], target),
        maps(depths[0], source, source, padding),
        maps(depths[1], target, target, future),
        maps(depths[1], target, source, padding),
    )


def rows_of(layers: LayerOutputs, rows: list[int], source: int, target: int) -> LayerOutputs:
    """Select some sentences, cut to lengths, or with more padding of arbitrary values."""
    lengths = ((source,), (target,), (source, source), (target, target), (target, source))

    def cut(x: Tensor, sizes: tuple[int, ...]) -> Tensor:
        is_map = len(sizes) == 2
        for dim, size in zip((2, 3) if is_map else (1,), sizes, strict=True):
            missing = size - x.shape[dim]
            if missing > 0:
                shape = list(x.shape)
                shape[dim] = missing
                # beyond the end there are odd queries, but no weight on keys
                x = torch.cat([x, torch.full(shape, 0.0 if dim == 3 else 0.37)], dim)
            x = x.narrow(dim, 0, size)
        return x[rows]

    return LayerOutputs(
        *(tuple(cut(x, sizes) for x in group) for group, sizes in zip(layers, lengths, strict=True))
    )


def with_grad(layers: LayerOutputs, dtype: torch.dtype = torch.float32) -> LayerOutputs:
    return LayerOutputs(
        *(tuple(x.detach().to(dtype).requires_grad_() for x in group) for group in layers)
    )


def both_losses(
    student: LayerOutputs,
    teacher: LayerOutputs,
    batch: Batch,
    normalize: bool = False,
    **options: list[int] | str | None,
) -> Tensor:
    """Return hidden and attention loss (2,) for the same choice of layers."""
    hidden = hidden_term(HiddenConfig(normalize=normalize, **options))  # type: ignore[arg-type]
    attention = attention_term(AttentionConfig(**options))  # type: ignore[arg-type]
    return torch.stack(
        [
            hidden_loss(student, teacher, batch, hidden),
            attention_loss(student, teacher, batch, attention),
        ]
    )


def one_layer(encoder: list[float], decoder: list[float]) -> LayerOutputs:
    """Return a sentence with one source and one target token."""
    return LayerOutputs((torch.tensor([[encoder]]),), (torch.tensor([[decoder]]),))


def test_hidden_worked_numbers() -> None:
    batch = batch_of([1], [1])
    student, teacher = one_layer([1, 2, 3, 5], [0, 0]), one_layer([1, 0, 0, 4], [3, 4])
    loss = hidden_loss(student, teacher, batch, hidden_term(HiddenConfig()))
    assert loss.item() == pytest.approx((4 + 9 + 1) / 4 + (9 + 16) / 2)
    student, teacher = one_layer([1, 3], [5, 5]), one_layer([40, -20], [8, 6])
    loss = hidden_loss(student, teacher, batch, hidden_term(HiddenConfig(normalize=True)))
    # brought to mean 0 and variance 1: (-1, 1) against (1, -1), (0, 0) against (1, -1)
    assert loss.item() == pytest.approx(4 + 1, rel=1e-4)


def test_attention_worked_numbers() -> None:
    batch = batch_of([2], [2])
    flat, sharp = torch.full((1, 1, 2, 2), 0.5), torch.tensor([[[[0.75, 0.25]] * 2]])
    causal = torch.tensor([[[[1.0, 0.0], [0.25, 0.75]]]])
    own = LayerOutputs((), (), (flat,), (causal,), (flat,))
    other = LayerOutputs((), (), (sharp,), (torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]]),), (flat,))
    # both queries: 0.75 ln 1.5 + 0.25 ln 0.5; the second query: 0.5 ln 2 + 0.5 ln (2 / 3)
    expected = {"encoder": 2 * 0.1308123, "decoder": 0.1438410, "cross": 0.0}
    for kind, value in expected.items():
        config = attention_term(AttentionConfig(kinds=[kind]))  # type: ignore[list-item]
        loss = attention_loss(own, other, batch, config)
        assert loss.item() == pytest.approx(value, abs=1e-6), kind
    loss = attention_loss(own, other, batch, attention_term(AttentionConfig()))
    assert loss.item() == pytest.approx(sum(expected.values()), abs=1e-6)


def test_attention_is_a_mean_over_heads_and_unequal_heads_are_averaged_first() -> None:
    batch = batch_of([2], [2])
    heads = torch.tensor([[[[0.75, 0.25]] * 2, [[0.25, 0.75]] * 2]])  # (B, H, S, S)
    flat = torch.full((1, 2, 2, 2), 0.5)
    config = attention_term(AttentionConfig(kinds=["encoder"]))

    def loss(own: Tensor, other: Tensor) -> float:
        pair = (LayerOutputs((), (), (x,)) for x in (own, other))
        return attention_loss(*pair, batch, config).item()

    assert loss(flat, heads) == pytest.approx(2 * 0.1308123, abs=1e-6)
    assert loss(flat[:, :1], heads) == pytest.approx(0.0, abs=1e-6)
    assert loss(heads, flat[:, :1]) == pytest.approx(0.0, abs=1e-6)
    assert loss(flat[:, :1], heads[:, :1].repeat(1, 3, 1, 1)) == pytest.approx(
        2 * 0.1308123, abs=1e-6
    )


@pytest.mark.parametrize("normalize", [False, True])
def test_a_sentence_counts_alike_alone_and_among_others(normalize: bool) -> None:
    source, target = [7, 2, 5], [3, 6, 1]
    batch = batch_of(source, target)
    student, teacher = made(batch, (2, 2), 1), made(batch, (4, 3), 2)
    alone = torch.zeros(2)
    for row, sizes in enumerate(zip(source, target, strict=True)):
        own, other = (rows_of(layers, [row], *sizes) for layers in (student, teacher))
        alone += both_losses(own, other, batch_of([sizes[0]], [sizes[1]]), normalize)
    together = both_losses(student, teacher, batch, normalize)
    torch.testing.assert_close(together, alone)
    padded = (rows_of(layers, [2, 0, 1], 11, 9) for layers in (student, teacher))
    wide = batch_of([5, 7, 2, 11], [1, 3, 6, 9])
    cut = batches.batch_of(wide.inputs.source[:3], wide.labels[:3])
    torch.testing.assert_close(both_losses(*padded, cut, normalize), alone)


@pytest.mark.parametrize("normalize", [False, True])
def test_a_batch_twice_is_exactly_double(normalize: bool) -> None:
    batch, twice = batch_of([4, 2], [3, 4]), batch_of([4, 2, 4, 2], [3, 4, 3, 4])
    student, teacher = made(batch, (2, 2), 1), made(batch, (3, 3), 2)
    doubled = (rows_of(layers, [0, 1, 0, 1], 4, 4) for layers in (student, teacher))
    expected = 2 * both_losses(student, teacher, batch, normalize)
    torch.testing.assert_close(both_losses(*doubled, twice, normalize), expected)


def test_an_empty_batch_adds_nothing_and_has_a_gradient_of_zero() -> None:
    student, teacher = with_grad(made(EMPTY, (2, 2), 1)), made(EMPTY, (2, 2), 2)
    losses = both_losses(student, teacher, EMPTY)
    assert losses.tolist() == [0.0, 0.0]
    losses.sum().backward()
    for group in student:
        for tensor in group:
            assert tensor.grad is not None and not tensor.grad.any()


def test_equal_layers_are_0_apart() -> None:
    batch = batch_of([4, 2], [3, 4])
    layers = made(batch, (3, 3), 1)
    assert both_losses(layers, layers, batch).tolist() == [0.0, 0.0]
    other = made(batch, (3, 3), 2)
    assert both_losses(layers, other, batch).min() > 1.0


@pytest.mark.parametrize(
    ("options", "encoder", "decoder"),
    [
        ({}, [1, 4, 5], [3, 5]),
        ({"match": "supervise"}, [1, 4, 5], [3, 5]),
        ({"match": "copy"}, [0, 2, 5], [0, 5]),
        ({"match": "even"}, [0, 3, 5], [0, 5]),
        ({"encoder": [2, 2, 0]}, [2, 2, 0], [3, 5]),
        ({"decoder": [4, 1]}, [1, 4, 5], [4, 1]),
        ({"encoder": [], "decoder": [4, 1]}, [], [4, 1]),
        ({"decoder": [], "match": "even"}, [0, 3, 5], []),
        ({"encoder": [], "decoder": []}, [], []),
    ],
)
def test_the_layers_that_are_compared(
    options: dict[str, list[int] | str | None], encoder: list[int], decoder: list[int]
) -> None:
    batch = batch_of([3, 2], [2, 4])
    student, teacher = made(batch, (3, 2), 1), made(batch, (6, 6), 2)
    expected = torch.zeros(2)
    for stack, layers in ((0, encoder), (1, decoder)):
        for own, other in enumerate(layers):
            alone = [
                LayerOutputs(*(group[i : i + 1] if kind in kinds else () for kind, group in groups))
                for i, groups, kinds in (
                    (own, list(enumerate(student)), ((0, 2), (1, 3, 4))[stack]),
                    (other, list(enumerate(teacher)), ((0, 2), (1, 3, 4))[stack]),
                )
            ]
            expected += both_losses(*alone, batch)
    torch.testing.assert_close(both_losses(student, teacher, batch, **options), expected)


@pytest.mark.parametrize("match", ["supervise", "copy", "even"])
@pytest.mark.parametrize("depth", [1, 2, 3, 6])
def test_every_layer_of_the_student_learns_and_none_of_the_teacher(match: str, depth: int) -> None:
    batch = batch_of([3, 2], [2, 4])
    student = with_grad(made(batch, (depth, depth), 1))
    teacher = with_grad(made(batch, (6, 6), 2))
    both_losses(student, teacher, batch, match=match).sum().backward()
    for tensor in (x for group in student for x in group):
        assert tensor.grad is not None and tensor.grad.abs().max() > 0
    assert all(x.grad is None for group in teacher for x in group)


def reference(
    student: LayerOutputs, teacher: LayerOutputs, batch: Batch, normalize: bool
) -> Tensor:
    """Compute both losses of stacks of equal depth by the formulas, per token in float64."""
    source, target = batch.inputs.source_mask, batch.mask
    hidden = torch.zeros((), dtype=torch.float64)
    attention = torch.zeros((), dtype=torch.float64)
    reals = (source, target, source, target, target)
    for kind, (own, other, real) in enumerate(zip(student, teacher, reals, strict=True)):
        for s, t in zip(own, other, strict=True):
            for row, place in real.nonzero().tolist():
                if kind < 2:
                    vectors = s[row, place], t[row, place].detach()
                    if normalize:
                        vectors = tuple(F.layer_norm(x, x.shape) for x in vectors)
                    hidden = hidden + (vectors[0] - vectors[1]).square().mean()
                    continue
                p, q = t[row, :, place].detach(), s[row, :, place]  # (H, K)
                terms = torch.where(p > 0, p * (p.clamp(min=1e-300) / q.clamp(min=1e-300)).log(), 0)
                attention = attention + terms.sum() / len(p)
    return torch.stack([hidden, attention])


@pytest.mark.parametrize("normalize", [False, True])
def test_values_and_gradients_are_those_of_float64(normalize: bool) -> None:
    batch = batch_of([4, 2], [3, 4])
    exact_student = with_grad(made(batch, (2, 2), 1), torch.float64)
    teacher = made(batch, (2, 2), 2)
    exact = reference(exact_student, with_grad(teacher, torch.float64), batch, normalize)
    exact.sum().backward()
    student = with_grad(made(batch, (2, 2), 1))
    losses = both_losses(student, teacher, batch, normalize)
    losses.sum().backward()
    torch.testing.assert_close(losses.double(), exact, atol=1e-6, rtol=1e-5)
    for ours, theirs in zip(student, exact_student, strict=True):
        for own, want in zip(ours, theirs, strict=True):
            torch.testing.assert_close(own.grad.double(), want.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_overflows_nowhere(dtype: torch.dtype) -> None:
    batch = batch_of([4, 2], [3, 4])
    student, teacher = made(batch, (2, 2), 1), made(batch, (2, 2), 2)
    # squares of differences beyond 65504, maps of ones and of what is 0 in half precision
    big = LayerOutputs(
        *(tuple(x * 300 for x in group) for group in student[:2]),
        *(tuple((x == x.amax(-1, True)).float().clamp(min=1e-36) for x in g) for g in student[2:]),
    )
    half = with_grad(big, dtype)
    for normalize in (False, True):
        losses = both_losses(half, teacher, batch, normalize)
        assert losses.dtype == torch.float32
        assert losses.isfinite().all()
    maps = with_grad(big)
    loss_scale = 2.0**24
    (
        attention_loss(maps, teacher, batch, attention_term(AttentionConfig())) * loss_scale
    ).backward()
    assert all(x.grad.isfinite().all() for group in maps[2:] for x in group)
    exact = both_losses(with_grad(big), teacher, batch)
    torch.testing.assert_close(both_losses(half, teacher, batch), exact, rtol=1e-2, atol=0)


def test_a_deeper_student_needs_named_layers() -> None:
    batch = batch_of([3, 2], [2, 4])
    student, teacher = made(batch, (3, 2), 1), made(batch, (2, 2), 2)
    with pytest.raises(ValueError, match="student of 3 layers is deeper than its teacher of 2"):
        both_losses(student, teacher, batch)
    assert both_losses(student, teacher, batch, encoder=[0, 1, 1]).min() > 0
