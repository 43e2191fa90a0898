"""The loss of `ds_seq.criterions.token_loss` as one Triton kernel, for NVIDIA GPUs.

The plain implementation takes a pass over memory for every operation. The kernel takes three over a
row of logits, and later ones find it in the cache: normalizers, divergence, gradient. All
arithmetic is float32. It is optional: without Triton, which torch's CUDA builds bring along, or
without the C compiler that Triton calls, the plain implementation runs.

Shapes: N real target tokens, M rows to process, V vocabulary, K tokens with teacher scores.
"""

# Triton compiles the body of the kernel; its values are not Python's.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor

from ds_seq.criterions.cross_entropy import LikelihoodSums, LogitGradient
from ds_seq.names import Divergence

_HALF_MAX = torch.finfo(torch.float16).max
_LOWEST_SCORE: tl.constexpr = tl.constexpr(-1e5)  # as in `ds_seq.criterions.divergence`
# Logits that a program reads at a time, and its warps. Of eleven pairs on an NVIDIA H200 the best
# for all losses together: cross entropy of 16,384 rows of 32,768 takes 0.9 ms, with JS 3.2 ms.
_BLOCK = 2048
_WARPS = 4

_KINDS: dict[Divergence, int] = {"forward_kl": 1, "reverse_kl": 2, "js": 3, "tv": 4}
_NONE = 0


@dataclass(frozen=True)
class Weights:
    """Factors of the gradient.

    Attributes:
        smoothing: factors returned by `smoothing_weights`.
        ce: weight of the cross entropy.
        kd: weight of the gradient of the divergence by the scores at the temperature.
        temperature: divisor of the scores of both models.
    """

    smoothing: tuple[float, float]
    ce: float
    kd: float
    temperature: float


@dataclass(frozen=True)
class TeacherRows:
    """What the distributions are compared with.

    Attributes:
        divergence: kind of divergence.
        scores: (N, V) scores of any floating dtype, or (N, K) for the columns `ids`.
        ids: (N, K) int64, different columns in each row; None for all columns, in order.
        values: (N,) float32, filled with the divergence of each row in nats.
    """

    divergence: Divergence
    scores: Tensor
    ids: Tensor | None
    values: Tensor


def works() -> bool:
    """Try the kernel on a few logits, and warn if it does not run."""
    logits, tokens = torch.zeros((2, 8), device="cuda"), torch.zeros(2, dtype=torch.int64).cuda()
    weights = Weights((1.0, 0.0), ce=1.0, kd=0.0, temperature=1.0)
    sums = LikelihoodSums(logits, weights.smoothing)
    try:
        run_loss_kernel(logits, tokens, weights, sums, LogitGradient(logits, 1.0))
        torch.cuda.synchronize()  # an error on the device would come later, as that of others
    except Exception as error:  # Triton raises what its compiler raises
        warnings.warn(f"the loss is slower without its Triton kernel: {error}", stacklevel=1)
        return False
    return True


def run_loss_kernel(
    logits: Tensor,
    tokens: Tensor,
    weights: Weights,
    sums: LikelihoodSums,
    gradient: LogitGradient | None,
    teacher: TeacherRows | None = None,
    rows: Tensor | None = None,
) -> None:
    """Compute the terms of the loss of some rows, and their gradient.

    Args:
        logits: (N, V).
        tokens: (N,) int64, correct tokens.
        weights: weights of the terms.
        sums: filled in for these rows.
        gradient: filled in for these rows; None for no gradient.
        teacher: what is distilled; its `values` are filled in. None for cross entropy alone.
        rows: (M,) int64 rows to process; None for all.
    """
    num_rows = len(logits) if rows is None else len(rows)
    if num_rows == 0:
        return
    logits, vocab = _dense(logits), logits.shape[1]
    scores, ids, values = logits, tokens.unsqueeze(1), sums.nll  # not read without a teacher
    if teacher is not None:
        scores, values = _dense(teacher.scores), teacher.values
        ids = ids if teacher.ids is None else _dense(teacher.ids)
    buffer = logits if gradient is None else gradient.buffer
    with torch.cuda.device(logits.device.index if logits.is_cuda else -1):
        _loss_kernel[(num_rows,)](
            *(logits, tokens, scores, ids, tokens if rows is None else rows),
            *(sums.nll, sums.spread, values, buffer),
            *(logits.stride(0), scores.stride(0), ids.stride(0)),
            *(*weights.smoothing, weights.ce, weights.kd, 1.0 / weights.temperature),
            *(
                (0.0, 0.0)
                if gradient is None
                else (gradient.scale, min(gradient.largest, _HALF_MAX))
            ),
            VOCAB=vocab,
            BLOCK=min(_BLOCK, triton.next_power_of_2(vocab)),
            KNOWN=scores.shape[1],
            KNOWN_BLOCK=min(_BLOCK, triton.next_power_of_2(scores.shape[1])),
            COMPARE=_NONE if teacher is None else _KINDS[teacher.divergence],
            COOLS=weights.temperature != 1.0,
            IS_TOP=teacher is not None and teacher.ids is not None,
            SOME_ROWS=rows is not None,
            WRITES=gradient is not None,
            CLIPS=buffer.dtype == torch.float16,
            num_warps=_WARPS,
        )


def _dense(matrix: Tensor) -> Tensor:
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


@triton.jit
def _compared(lp, lq, COMPARE: tl.constexpr):
    """Return terms of the divergence, of `Pull.scale` and of `Pull.rest` from log-probabilities.

    `ds_seq.criterions.divergence` has the formulas in plain torch. What is NaN there must be NaN
    here, but the maximum of NaN and a number is that number: limits are conditions instead.
    """
    p, q, r = tl.exp(lp), tl.exp(lq), lq - lp
    if COMPARE == 1:
        return q * r, 0.0 * p, q
    if COMPARE == 2:
        return -r * p, r * p, r * p
    if COMPARE == 3:
        soft = tl.maximum(r, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(r)))
        half = 0.5 * p * soft
        return -half - 0.5 * (q * soft - q * r), half, half
    above = tl.where(q > p, p, 0.0)
    return tl.where(q <= p, 0.0, q - p), above, above


@triton.jit
def _log_sum(x_row, cooling, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Return the largest score of a row, `top`, and sums over its scores.

    They are log(sum(exp(cooling * (score - top)))) and sum(top - score). Adding `top` to the
    logarithm would round it to the digits of a large score.
    """
    top, total, below = -1e30, 0.0, 0.0  # not minus infinity, which a whole block may be
    for start in range(0, WIDTH, BLOCK):
        places = start + tl.arange(0, BLOCK)
        inside = places < WIDTH
        x = tl.load(x_row + places, mask=inside, other=-float("inf")).to(tl.float32)
        new_top = tl.maximum(top, tl.max(x, 0))
        more = tl.sum(tl.exp((x - new_top) * cooling), 0)
        total = total * tl.exp((top - new_top) * cooling) + more
        rise = tl.where(start == 0, 0.0, new_top - top)
        below += rise * start + tl.sum(tl.where(inside, new_top - x, 0.0), 0)
        top = new_top
    return top, tl.log(total), below


@triton.jit
def _log_probs(
    t_row, ids_row, places, cooling, top, log_sum, WIDTH: tl.constexpr, IS_TOP: tl.constexpr
):
    """Return the columns of some of a teacher's scores, and their log-probabilities."""
    t = tl.load(t_row + places, mask=places < WIDTH, other=0.0).to(tl.float32)
    columns = tl.load(ids_row + places, mask=places < WIDTH, other=0) if IS_TOP else places
    return columns, tl.maximum((t - top) * cooling, _LOWEST_SCORE) - log_sum


@triton.jit
def _divergence(
    x_row, t_row, ids_row, cooling, top, log_sum, t_top, t_log_sum,
    COMPARE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, IS_TOP: tl.constexpr
):  # fmt: skip
    """Return `Pull.value` and `Pull.scale` of a row."""
    value, factor = 0.0, 0.0
    for start in range(0, WIDTH, BLOCK):
        places = start + tl.arange(0, BLOCK)
        inside = places < WIDTH
        columns, lq = _log_probs(t_row, ids_row, places, cooling, t_top, t_log_sum, WIDTH, IS_TOP)
        x = tl.load(x_row + columns, mask=inside, other=0.0).to(tl.float32)
        values, parts, _rest = _compared((x - top) * cooling - log_sum, lq, COMPARE)
        value += tl.sum(tl.where(inside, values, 0.0), 0)
        factor += tl.sum(tl.where(inside, parts, 0.0), 0)
    if COMPARE == 1:
        factor += 1.0
    if COMPARE == 3:
        value += 0.6931471805599453  # log 2
    return tl.where(value < 0.0, 0.0, value), factor


@triton.jit
def _write(
    g_row, x_row, t_row, ids_row, token, top, log_sum, cooled, t_top, t_log_sum, factor,
    right, each, ce_weight, kd_weight, cooling, scale, largest,
    COMPARE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    READS_TEACHER: tl.constexpr, IS_TOP: tl.constexpr, CLIPS: tl.constexpr
):  # fmt: skip
    """Write the gradient of a row at all columns, or at those of the teacher's top tokens."""
    for start in range(0, WIDTH, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < WIDTH
        lq = tl.full((BLOCK,), -float("inf"), tl.float32)
        if READS_TEACHER:
            columns, lq = _log_probs(
                t_row, ids_row, columns, cooling, t_top, t_log_sum, WIDTH, IS_TOP
            )
        x = tl.load(x_row + columns, mask=inside, other=0.0).to(tl.float32) - top
        g = (tl.exp(x - log_sum) - each - tl.where(columns == token, right, 0.0)) * ce_weight
        if COMPARE:
            lp = x * cooling - cooled
            _value, _part, rest = _compared(lp, lq, COMPARE)
            g += kd_weight * (factor * tl.exp(lp) - rest)
        g *= scale
        if CLIPS:  # keeps NaN, without which nobody would notice the overflow of a logit
            g = tl.where(g > largest, largest, tl.where(g < -largest, -largest, g))
        tl.store(g_row + columns, g.to(g_row.dtype.element_ty), mask=inside)


@triton.jit
def _loss_kernel(
    logits, tokens, scores, ids, rows, nll_out, spread_out, divergence_out, gradient,
    logits_stride, scores_stride, ids_stride,
    right, each, ce_weight, kd_weight, cooling, scale, largest,
    VOCAB: tl.constexpr, BLOCK: tl.constexpr, KNOWN: tl.constexpr, KNOWN_BLOCK: tl.constexpr,
    COMPARE: tl.constexpr, COOLS: tl.constexpr, IS_TOP: tl.constexpr,
    SOME_ROWS: tl.constexpr, WRITES: tl.constexpr, CLIPS: tl.constexpr
):  # fmt: skip
    """One program per row; see `run_loss_kernel`."""
    row = tl.program_id(0).to(tl.int64)
    if SOME_ROWS:
        row = tl.load(rows + row)
    x_row, t_row = logits + row * logits_stride, scores + row * scores_stride
    ids_row, g_row = ids + row * ids_stride, gradient + row * VOCAB
    token = tl.load(tokens + row)
    top, log_sum, below = _log_sum(x_row, 1.0, VOCAB, BLOCK)
    tl.store(nll_out + row, top - tl.load(x_row + token).to(tl.float32) + log_sum)
    # without smoothing, scores may be minus infinity
    tl.store(spread_out + row, tl.where(each > 0.0, log_sum * VOCAB + below, 0.0))
    cooled, t_top, t_log_sum, factor = log_sum, 0.0, 0.0, 0.0
    if COMPARE:
        if COOLS:
            _top, cooled, _below = _log_sum(x_row, cooling, VOCAB, BLOCK)
        t_top, t_log_sum, _t_below = _log_sum(t_row, cooling, KNOWN, KNOWN_BLOCK)
        value, factor = _divergence(
            x_row, t_row, ids_row, cooling, top, cooled, t_top, t_log_sum,
            COMPARE, KNOWN, KNOWN_BLOCK, IS_TOP
        )  # fmt: skip
        tl.store(divergence_out + row, value)
    if WRITES:
        _write(
            g_row, x_row, t_row, ids_row, token, top, log_sum, cooled, t_top, t_log_sum, factor,
            right, each, ce_weight, kd_weight, cooling, scale, largest,
            COMPARE, VOCAB, BLOCK, COMPARE > 0 and not IS_TOP, IS_TOP, CLIPS
        )  # fmt: skip
        if IS_TOP:  # the teacher's columns again, once all threads have written
            tl.debug_barrier()
            _write(
                g_row, x_row, t_row, ids_row, token, top, log_sum, cooled, t_top, t_log_sum, factor,
                right, each, ce_weight, kd_weight, cooling, scale, largest,
                COMPARE, KNOWN, KNOWN_BLOCK, True, True, CLIPS
            )  # fmt: skip
