"""Multi-scale retention (Sun et al., 2023, https://arxiv.org/abs/2307.08621).

A token takes from another one its value, times the product of query and key, times a decay to the
power of their distance. There is no softmax, so all tokens before it can be summed up in one matrix
per head: decoding takes the same time and memory at every position. Each head has another decay.

    y_n = group_norm(sum_m decay ** |n - m| (q_n k_m) v_m / max(|w_n|, sqrt(s_n)))
    w_n = sum_m decay ** |n - m| (q_n k_m),   s_n = sum_m decay ** |n - m|

The sums go over all real tokens m up to n in a decoder, and over all real tokens in an encoder.
Three forms compute them: all tokens at once (parallel), chunks of tokens with what came before each
of them summed up (chunkwise), and token by token (recurrent). The divisor is a sum of the same kind
and not a norm of what one form happens to hold, so that the three agree. All sums are in float32.

Shapes: B batch, T length, H heads, Dk width of a head's queries and keys, Dv of its values, D model
width, C tokens in a chunk, N chunks; in a search K beam width, R = B K hypotheses (row r belongs to
sentence r // K).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ds_seq.modules.activations import ACTIVATIONS
from ds_seq.modules.body import BodyOutput, Context
from ds_seq.modules.kv_cache import BeamPaths, KeptSentences, is_identity
from ds_seq.modules.linear import Linear, LinearMaker, by_set, maps_of
from ds_seq.modules.rotary import RotaryPositions
from ds_seq.names import GateActivation

_GAIN = 2**-2.5  # of all maps but the last, as in the authors' code


def decays_of(shortest: float, longest: float | None, num_heads: int) -> list[float]:
    """Return the logarithm of the decay of each head.

    A head with memory m has the decay 1 - 1 / m: what is m tokens back counts a third.

    Args:
        shortest: memory of the first head in tokens; 32 in the paper.
        longest: memory of the last head, with those between in geometric progression; None: each
            head remembers twice as long as the one before, as in the paper.
        num_heads: number of heads, H.
    """
    ratio = 2.0
    if longest is not None:
        ratio = (longest / shortest) ** (1 / max(num_heads - 1, 1))
    return [math.log1p(-1.0 / (shortest * ratio**head)) for head in range(num_heads)]


class RetentionRotation(RotaryPositions):
    """Rotation of queries and keys, without a decay: that of the heads takes its place.

    The angles per position go from 1 to 1 / theta, both included.
    """

    def frequencies(self, width: int) -> Tensor:
        """Return the angles per position (Dk / 2,), fastest first, in float32."""
        angles: Tensor = self.theta ** -torch.linspace(0, 1, width // 2, dtype=torch.float32)
        return angles


def retain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    log_decays: Tensor,
    causal: bool,
    chunk: int,
) -> Tensor:
    """Apply retention to whole sequences, before the group norm.

    Args:
        query: (B, H, T, Dk), float32 or float64.
        key: (B, H, T, Dk), scaled.
        value: (B, H, T, Dv).
        mask: (B, T) bool, True at real tokens, anywhere in a row; None if all are real.
        log_decays: (H,), logarithms of the decays.
        causal: whether tokens take from earlier ones only.
        chunk: number of tokens of a chunk; the parallel form is one chunk.

    Returns:
        (B, H, T, Dv).
    """
    length = query.size(2)
    chunk = max(1, min(chunk, length))
    if mask is not None:
        key = key * mask[:, None, :, None]
    if length % chunk:
        query, key, value = (F.pad(x, (0, 0, 0, -length % chunk)) for x in (query, key, value))
    query, key, value = (x.unflatten(2, (-1, chunk)) for x in (query, key, value))
    inner = _inner_decays(log_decays, chunk, causal)
    weights = (query @ key.transpose(-1, -2)) * inner[:, None]  # (B, H, N, C, C)
    values, sums = weights @ value, weights.detach().sum(-1)
    if query.size(2) > 1:
        further = _beyond(query, key, value, log_decays)
        values, sums = values + further[0], sums + further[1]
        if not causal:
            query, key, value = (x.flip(2, 3) for x in (query, key, value))
            further = _beyond(query, key, value, log_decays)
            values, sums = values + further[0].flip(2, 3), sums + further[1].flip(2, 3)
    totals = _totals(mask, length, log_decays, causal, chunk)
    divisors = torch.maximum(sums.flatten(2, 3)[..., :length].abs(), totals.sqrt())
    return values.flatten(2, 3)[:, :, :length] / divisors[..., None]


def _inner_decays(log_decays: Tensor, chunk: int, causal: bool) -> Tensor:
    """Return the decay between all tokens of a chunk (H, C, C), 0 at later ones if causal."""
    places = torch.arange(chunk, device=log_decays.device)
    distances = (places[:, None] - places).abs()
    inner = (distances * log_decays[:, None, None]).exp()
    return inner.tril() if causal else inner


def _beyond(query: Tensor, key: Tensor, value: Tensor, log_decays: Tensor) -> tuple[Tensor, Tensor]:
    """Return what tokens take from the chunks before theirs.

    Args:
        query: (B, H, N, C, Dk).
        key: (B, H, N, C, Dk).
        value: (B, H, N, C, Dv).
        log_decays: (H,).

    Returns:
        The sum of values (B, H, N, C, Dv), and the sum of their weights (B, H, N, C), detached.
    """
    chunk = query.size(3)
    since_start, to_end, whole = _decays_in_chunk(log_decays, chunk)
    faded = key * to_end[:, None, :, None]
    past = _carried(faded.transpose(-1, -2) @ value, whole)  # (B, H, N, Dk, Dv)
    past_keys = _carried(faded.detach().sum(-2), whole)  # (B, H, N, Dk)
    query = query * since_start[:, None, :, None]
    sums = (query.detach() * past_keys[..., None, :]).sum(-1)
    return query @ past, sums


def _decays_in_chunk(log_decays: Tensor, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the decays since the end of the last chunk (H, C), to the end, and of a chunk (H,)."""
    places = torch.arange(chunk, device=log_decays.device)
    since_start = ((places + 1) * log_decays[:, None]).exp()
    return since_start, ((chunk - 1 - places) * log_decays[:, None]).exp(), since_start[:, -1]


def _carried(x: Tensor, decays: Tensor) -> Tensor:
    """Return the decayed sum of x (B, H, N, ...) over the chunks before each; `decays` is (H,)."""
    decays = decays.view(1, -1, *[1] * (x.dim() - 3))
    carried = [torch.zeros_like(x[:, :, 0])]
    for chunk in x.unbind(2)[:-1]:
        carried.append(carried[-1] * decays + chunk)
    return torch.stack(carried, 2)


def _geometric(log_decays: Tensor, counts: Tensor | float) -> Tensor:
    """Return the sum of the first `counts` powers of decays."""
    return (counts * log_decays).expm1() / log_decays.expm1()


def _totals(
    mask: Tensor | None, length: int, log_decays: Tensor, causal: bool, chunk: int
) -> Tensor:
    """Return the sum of the decays of all real tokens that each token sees, at least 1.

    Returns:
        (H, T), or with a mask (B, H, T).
    """
    if mask is None:
        counts = torch.arange(1, length + 1, device=log_decays.device)
        before = _geometric(log_decays[:, None], counts)
        return before if causal else before + before.flip(1) - 1
    real = F.pad(mask.to(log_decays.dtype), (0, -length % chunk)).unflatten(1, (-1, chunk))
    real = real[:, None]  # (B, 1, N, C)
    totals = real @ _inner_decays(log_decays, chunk, causal).transpose(-1, -2)  # (B, H, N, C)
    if real.size(2) > 1:
        since_start, to_end, whole = _decays_in_chunk(log_decays, chunk)
        past = _carried(real @ to_end[..., None], whole)  # (B, H, N, 1)
        totals = totals + past * since_start[:, None]
        if not causal:
            future = _carried(real.flip(2, 3) @ to_end[..., None], whole)
            totals = totals + (future * since_start[:, None]).flip(2, 3)
    return totals.flatten(2, 3)[..., :length].clamp(min=1.0)


class RetentionPast:
    """What a retention keeps of the tokens before, whatever their number.

    Args:
        paths: paths of the beam searches, which know the beam and the position.
    """

    def __init__(self, paths: BeamPaths) -> None:
        self._paths = paths
        self._values: Tensor | None = None  # (R, H, Dk, Dv) decayed sum of keys times values
        self._keys: Tensor | None = None  # (R, H, Dk) decayed sum of keys

    @property
    def length(self) -> int:
        """Position of the token being decoded."""
        return self._paths.length - 1

    def add(self, key: Tensor, value: Tensor, log_decays: Tensor) -> tuple[Tensor, Tensor]:
        """Add the newest tokens' keys (R, H, Dk) and values (R, H, Dv); return both sums."""
        if self._values is None or self._keys is None:
            self._values, self._keys = key[..., None] * value[..., None, :], key.clone()
        else:
            decays = log_decays.exp()[:, None]
            self._values.mul_(decays[..., None]).addcmul_(key[..., None], value[..., None, :])
            self._keys.mul_(decays).add_(key)
        return self._values, self._keys

    def reorder(self, rows: Tensor) -> None:
        """See `Past`."""
        if self._values is None or self._keys is None or is_identity(rows, len(self._keys)):
            return
        self._values = self._values.index_select(0, rows)
        self._keys = self._keys.index_select(0, rows)

    def keep_sentences(self, kept: KeptSentences) -> None:
        """See `Past`."""
        if self._values is not None and self._keys is not None:
            beam = self._paths.beam
            sums = (self._values, self._keys)
            by_sentence = (each.unflatten(0, (-1, beam)) for each in sums)
            self._values, self._keys = (kept.apply(each).flatten(0, 1) for each in by_sentence)


class Retention(nn.Module):
    """Multi-scale retention with a gate, in place of self-attention.

    In an encoder, a token takes from both sides, with decays by distance; the rotation of queries
    and keys still tells one side from the other.

    Args:
        d_model: width of the model, D.
        num_heads: number of heads, H; D / H is even.
        value_width: width of all heads' values, H Dv.
        log_decays: logarithm of each head's decay, see `decays_of`.
        causal: whether position t takes from positions <= t only.
        theta: base of the angles of the rotation.
        gate: activation of the gate.
        eps: added to the mean square in the norm of each head's output.
        chunk_of: length of a text -> number of tokens of a chunk, C.
        make_linear: makes all maps, called like `Linear`.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        value_width: int,
        log_decays: Sequence[float],
        causal: bool,
        theta: float,
        gate: GateActivation,
        eps: float,
        chunk_of: Callable[[int], int],
        make_linear: LinearMaker = Linear,
    ) -> None:
        super().__init__()
        self.num_heads, self.causal, self.eps = num_heads, causal, eps
        self.chunk_of = chunk_of
        self._gate = ACTIVATIONS[gate].function
        # no buffer, because `model.half()` must not round it
        self._log_decays = torch.tensor(log_decays, dtype=torch.float64)
        self.rotation = RetentionRotation(d_model // num_heads, theta, interleaved=True)
        widths = (d_model, d_model, value_width, value_width)
        self.qkvg = make_linear(d_model, sum(widths), parts=widths, gain=_GAIN)
        self.output = make_linear(value_width, d_model)

    def forward(self, x: Tensor, context: Context) -> BodyOutput:
        """Retain within whole sequences.

        Args:
            x: hidden states (B, T, D).
            context: which tokens are real. If causal, it is not read: padding is on the right, so
                real tokens never take from it.

        Returns:
            The output (B, T, D); there is no map.
        """
        length = x.size(1)
        query, key, value, gate = self._project(x, 0, length, context)
        is_padded = not self.causal and context.attention_mask is not None
        mask = context.token_mask if is_padded else None
        decays = self._decays(query)
        y = retain(query, key, value, mask, decays, self.causal, self.chunk_of(length))
        return BodyOutput(self._joined(y.transpose(1, 2), gate, context))

    def scale_parameters(self, factor: float) -> None:
        """Scale the initial maps of values and output, see `ds_seq.models.init`."""
        for projection in maps_of(self.qkvg):
            projection.weight.split(projection.widths)[2].mul_(factor)
        for output in maps_of(self.output):
            output.weight.mul_(factor)

    def start_past(self, context: Context, paths: BeamPaths) -> RetentionPast:
        """Return an empty state."""
        return RetentionPast(paths)

    def step(self, x: Tensor, past: RetentionPast, context: Context) -> Tensor:
        """Retain with the newest token of each hypothesis, x (B, K, D); returns (B, K, D)."""
        query, key, value, gate = self._project(x, past.length, 1, context)
        query, key, value = (each.transpose(1, 2).flatten(0, 1) for each in (query, key, value))
        decays = self._decays(query)
        values, keys = past.add(key, value, decays)
        y = (query[..., None, :] @ values).squeeze(-2)  # (R, H, Dv)
        sums = (query * keys).sum(-1, keepdim=True).abs()
        totals = _geometric(decays, past.length + 1)
        y = y / torch.maximum(sums, totals.sqrt()[:, None])
        return self._joined(y.unflatten(0, x.shape[:2]), gate, context)

    def _decays(self, like: Tensor) -> Tensor:
        """Return the logarithms of the decays (H,)."""
        if self._log_decays.device != like.device or self._log_decays.dtype != like.dtype:
            # a tensor that was made in inference mode could not be used in training
            with torch.inference_mode(False), torch.no_grad():
                self._log_decays = self._log_decays.to(like.device, like.dtype)
        return self._log_decays

    def _project(
        self, x: Tensor, start: int, length: int, context: Context
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return turned queries and keys, values (B, H, T, ...) in float32, and the gate (B, T, .).

        Args:
            x: hidden states (B, T, D), or those of K hypotheses at one position.
            start: position of the first token.
            length: number of positions.
            context: sets of parameters.
        """
        projected = by_set(self.qkvg, x, context.ways)
        *parts, gate = projected.split_with_sizes(self.qkvg.widths, dim=-1)
        dtype = torch.promote_types(x.dtype, torch.float32)
        heads = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        query, key, value = (each.to(dtype) for each in heads)
        query, key = self.rotation(query, key * key.size(-1) ** -0.5, start, length)
        return query, key, value.contiguous(), gate  # else every product would copy the values

    def _joined(self, y: Tensor, gate: Tensor, context: Context) -> Tensor:
        """Normalize each head of y (B, T, H, Dv), and apply gate and output map."""
        normed = F.rms_norm(y, (y.size(-1),), eps=self.eps).flatten(2).to(gate.dtype)
        return by_set(self.output, self._gate(gate) * normed, context.ways)
