"""Tensors that a forward pass keeps for the backward pass.

Each sub-layer is counted as the code computes it: a tensor counts once, although its producer and
its consumer may both keep it.

Shapes: D width of the model, F inner width, H heads, T length.
"""

from __future__ import annotations

from collections.abc import Iterator

from ds_seq.config.cost.batch import FLOAT, INDEX, Activations, BatchShape, Device, Layer
from ds_seq.config.model import MoeConfig, TransformerConfig
from ds_seq.config.model.convolution import AnyConvolutionConfig
from ds_seq.config.model.positions import RotaryConfig, XPosConfig
from ds_seq.config.model.retention import RetentionConfig
from ds_seq.names import BIASED_POSITIONS, GATED_ACTIVATIONS, Stack

_TURNED = ("rotary", "xpos")
# tensors as wide as the inner layer that plain activations keep: input, output
_PLAIN = {"relu": 1}
# gate and value, the activated gate, the result
_GATED = 4
_BLOCK_MULTIPLE, _FEWEST_BLOCKS = 64, 4  # see `ds_seq.modules.local_attention`
_DROPPED_MAPS = 3  # of an attention: weights before and after dropout, and what dropped them
_ROUTER_TENSORS = 3  # of all experts: logits, probabilities, and those after the logarithm


_BAND = 32  # tokens of a block of a convolution, see `ds_seq.modules.convolution`


def activations(
    model: TransformerConfig,
    batch: BatchShape,
    vocab_size: int,
    device: Device,
    expert_parallel: int = 1,
) -> Activations:
    """Return what a forward pass in training keeps.

    Args:
        model: the model.
        batch: the batch.
        vocab_size: size of the vocabulary of the target.
        device: where it runs.
        expert_parallel: number of ranks over which the experts are distributed.
    """
    count = _Counter(model, batch, device, expert_parallel)
    width, tokens = device.width, batch.tokens
    layers = tuple(layer for stack in model.stacks for layer in count.layers(stack))
    rest = sum(count.ends(stack) for stack in model.stacks)
    read = model.language_model
    if read is not None and read.weights == "trained":  # a frozen one keeps nothing
        found = activations(read.section, batch, 0, device)
        layers = (*(each._replace(stack="encoder") for each in found.layers), *layers)
        rest += found.rest
    if model.has_dense_head and vocab_size:
        rest += tokens * count.head()
    scores: float = vocab_size * width
    if model.adaptive_bands is not None:  # of which log-probabilities are kept
        scores = model.adaptive_bands.expected_scores(vocab_size) * FLOAT
    return Activations(layers, rest, tokens * scores, tokens * model.d_model * width)


class _Counter:
    """Counts bytes of a batch."""

    def __init__(
        self, model: TransformerConfig, batch: BatchShape, device: Device, expert_parallel: int
    ) -> None:
        self._expert_parallel = expert_parallel
        self._model, self._batch, self._device = model, batch, device
        self._d, self._w = model.d_model, device.width
        head = model.head_width(model.d_model)
        self._kv_heads = model.num_kv_heads or model.num_heads
        self._kv, self._attention = self._kv_heads * head, model.num_heads * head

    def layers(self, stack: Stack) -> Iterator[Layer]:
        """Yield the calls of layers of a stack."""
        model, tokens = self._model, self._batch.tokens
        once = []
        for layer, num_experts in enumerate(model.expert_counts(stack)):
            parts = [self._mixer(stack, layer)]
            if stack == "decoder":
                parts.append(self._cross_attention())
            parts.append(
                self._experts(model.moe, num_experts)
                if model.moe is not None and num_experts
                else self._feed_forward(model.inner_width(model.ffn_dim))
            )
            parts += [self._adapter(stack), self._changes(stack, num_experts)]
            kept = tokens * (sum(parts) + (len(parts) - 2) * self._residual())
            kept += self._scores(stack) + self._changed_experts(stack, num_experts)
            once.append(Layer(stack, kept, tokens * self._d * self._w))
        for _ in range(model.repeats_of(stack)):
            yield from once

    def ends(self, stack: Stack) -> float:
        """Return what is kept before the first layer of a stack and after the last."""
        model, w, d = self._model, self._w, self._d
        # token numbers, the input of the first sub-layer; the others are outputs of sub-layers
        kept = INDEX + d * w + self._mask(d, model.dropout)
        if model.embedding_norm:
            kept += d * w + self._statistics(1)
        if model.has_final_norm:
            kept += d * w + self._statistics(1)
        if model.sets_of(stack) > 1:  # places of tokens, in a decoder those of the source, too
            kept += 2 * INDEX if stack == "encoder" else 4 * INDEX - d * w
        if model.embedding_dim is not None:
            is_tied = stack == "decoder" and model.shares_output
            kept += model.embedding_dim * w * (2 if is_tied else 1)
        return kept * self._batch.tokens

    def head(self) -> float:
        """Return what the dense head keeps of a token; its output counts as that of a stack."""
        states = _PLAIN.get(self._model.activation, 2)
        return (1 + states) * self._d * self._w + self._statistics(1)

    def _mask(self, width: float, dropout: float) -> float:
        return width * self._device.mask if dropout else 0.0

    def _statistics(self, norms: float) -> float:
        return norms * FLOAT * (2 if self._model.norm.name == "layer" else 1)

    def _rounded(self, *inputs: float) -> float:
        """Return what maps of few bits keep besides their inputs: these in levels, and float32."""
        if self._model.linear.name != "bitnet":
            return 0.0
        return sum(inputs) * (self._w if self._w == FLOAT else self._w + FLOAT)

    def _residual(self) -> float:
        """Return what a residual keeps of a token: input and output of its norm, its dropout."""
        model, w = self._model, self._w
        kept = 2 * self._d * w + self._statistics(1) + self._mask(self._d, model.dropout)
        if model.norm.name == "rms" and w < FLOAT and not self._device.pads:
            kept += 3 * self._d * w  # a CPU has no kernel for it, and keeps float32 numbers
        return kept

    def _attended(self) -> float:
        """Return what the attention kernel keeps of a query besides queries, keys and values."""
        return self._attention * self._w + self._model.num_heads * FLOAT

    def _shared(self) -> float:
        """Return what copies of keys and values keep that several heads share."""
        return 2 * self._attention * self._w if self._kv_heads < self._model.num_heads else 0.0

    def _mixer(self, stack: Stack, layer: int) -> float:
        """Return what the mixer of a layer keeps of a token; its input counts elsewhere."""
        model, causal = self._model, stack == "decoder"
        retention, convolution = model.retention_of(stack), model.convolution_of(stack)
        if retention is not None:
            return self._retention(retention, causal)
        if convolution is not None:
            size = convolution.sizes(model.layers_of(stack))[layer]
            return self._convolution(convolution, size, stack)
        return self._self_attention(stack)

    def _self_attention(self, stack: Stack) -> float:
        model, w, d, kv = self._model, self._w, self._attention, self._kv
        is_turned, is_shared = model.positions.name in _TURNED, self._kv_heads < model.num_heads
        kept = self._attended() + self._shared() + self._rounded(self._d, d)
        if model.query_key_norm or not (is_turned and is_shared):
            kept += (d + 2 * kv) * w  # what the map returned: one tensor, with parts as views
        if model.query_key_norm or is_turned:
            kept += self._moved(is_shared)
            keeps_order = self._turns_neighbors and not model.query_key_norm
            if keeps_order or model.dilated_of(stack) is not None:
                kept -= d * w  # the attended values lie in memory as merged heads do
        if model.query_key_norm:
            kept += self._statistics(model.num_heads + self._kv_heads)
        if model.has_inner_norms:
            kept += d * w + self._statistics(1)
        return kept + self._grouped(stack, d)

    @property
    def _turns_neighbors(self) -> bool:
        positions = self._model.positions
        return isinstance(positions, RotaryConfig | XPosConfig) and positions.interleaved

    def _retention(self, retention: RetentionConfig, causal: bool) -> float:
        """Return what retention keeps of a token: all but the first and last map is in float32."""
        w, d, values = self._w, self._d, retention.values(self._d)
        heads, length = retention.heads(self._model.num_heads), self._batch.length
        chunk = min(retention.chunk_of(length), length)
        # queries, keys, values; those taken and their divisors; weights, and decays of a chunk
        kept: float = FLOAT * (2 * d + 2 * values + 2 * heads + heads * chunk)
        kept += FLOAT * heads * chunk**2 / self._batch.tokens
        # what the map returned, the activated gate, and what it multiplies
        kept += w * (2 * d + 2 * values + 3 * values)
        if w < FLOAT:
            kept += FLOAT * values  # the normed values before they are rounded
        if chunk < length:  # queries and keys that have decayed, and the sums of each chunk
            sums = 2.0 * d + d * values / (heads * chunk)
            kept += FLOAT * (sums if causal else 2 * sums + values)
        return kept + self._rounded(d, values)

    def _convolution(self, convolution: AnyConvolutionConfig, size: int, stack: Stack) -> float:
        """Return what a convolution keeps of a token: channels, kernels in bands, windows."""
        model, w = self._model, self._w
        channels, heads = convolution.channels(self._d), convolution.heads(model.num_heads)
        block = min(_BAND, self._batch.length)
        band = (block + size - 1) / block
        is_dynamic = convolution.kernel_map(self._d, heads, size) > 0
        is_dropped = convolution.dropped(model.attention_dropout) > 0
        kept = self._mask(self._d, convolution.input_dropout)
        # both halves of a gated unit and the gate; windows; what follows
        kept += channels * w * (3 if convolution.glu else 0)
        kept += channels * w * (1 + band)
        kept += heads * block * band * w
        if is_dynamic:
            kept += channels * w + self._rounded(channels)
        if convolution.weight_softmax and (is_dynamic or model.sets_of(stack) > 1):
            kept += heads * size * FLOAT
        if is_dropped:
            kept += heads * size * self._device.mask
        if model.has_inner_norms:
            kept += channels * w + self._statistics(1)
        return kept + self._rounded(self._d, channels)

    def _cross_attention(self) -> float:
        model, w, d, kv = self._model, self._w, self._attention, self._kv
        kept = (d + 2 * kv) * w + self._attended() + self._shared()
        kept += self._rounded(self._d, self._d, d)
        if model.query_key_norm:
            kept += self._moved(self._kv_heads < model.num_heads)
            kept += self._statistics(model.num_heads + self._kv_heads)
        return kept + self._grouped("decoder", d + self._d)

    def _grouped(self, stack: Stack, width: float) -> float:
        """Return what copies of inputs in the order of their sets of parameters keep."""
        return width * self._w if self._model.sets_of(stack) > 1 else 0.0

    def _moved(self, is_shared: bool) -> float:
        """Return what queries and keys keep that are normalized or turned.

        The attended values then have to be copied to merge the heads. Keys that heads share are
        kept as copies only.
        """
        return (2 * self._attention + (0 if is_shared else self._kv)) * self._w

    def _scores(self, stack: Stack) -> float:
        """Return what a layer keeps per pair of tokens: biases, and maps if weights are dropped."""
        model, batch = self._model, self._batch
        square = batch.length**2
        if not model.has_pairs(stack):
            dropped = stack == "decoder" and model.attention_dropout
            maps = _DROPPED_MAPS if dropped and not self._device.fuses_dropout else 0
            return maps * batch.sentences * model.num_heads * square * self._w
        heads = model.num_heads if model.positions.name in BIASED_POSITIONS else 1
        kept = 0.0
        if model.attention_window is not None and batch.length >= _FEWEST_BLOCKS * self._block:
            return batch.tokens * self._blocks(stack, model.attention_window)
        if model.positions.name in BIASED_POSITIONS or model.attention_window is not None:
            # the mask of padding makes it one per sentence; in a decoder there is none
            times = batch.sentences if stack == "encoder" and self._device.pads else 1
            if self._device.pads or stack == "decoder":
                kept += times * heads * square * self._w
        if not self._device.fuses_dropout:
            maps = 0
            if model.attention_dropout:
                maps = _DROPPED_MAPS * (2 if stack == "decoder" else 1)
            elif model.positions.name == "buckets":  # a kernel without a gradient of the bias
                maps = 1
            kept += maps * batch.sentences * model.num_heads * square * self._w
        return kept

    @property
    def _block(self) -> int:
        """Queries in a block of attention within a window."""
        return -(-(self._model.attention_window or 1) // _BLOCK_MULTIPLE) * _BLOCK_MULTIPLE

    def _blocks(self, stack: Stack, window: int) -> float:
        """Return what attention in blocks keeps of a query: blocks overlap in their keys."""
        keys = self._block + (window - 1) * (1 if stack == "decoder" else 2)
        return (self._attention * (1 + 2 * keys / self._block) + keys) * self._w

    def _feed_forward(self, inner: int, dropout: float | None = None) -> float:
        """Return what a feed-forward keeps of a token; its input counts elsewhere.

        Args:
            inner: its inner width.
            dropout: dropout of experts; None for a dense one.
        """
        model, w = self._model, self._w
        dropout = model.activation_dropout if dropout is None else dropout
        drops = bool(dropout)
        if model.is_gated:
            wide = _GATED
        else:
            wide = _PLAIN.get(model.activation, 2)
            wide += 1 if drops and model.activation == "relu" else 0
        kept = wide * inner * w + self._mask(inner, dropout)
        kept += self._rounded(self._d, inner)
        if model.has_inner_norms:
            kept += inner * w + self._statistics(1)
        return kept

    def _adapter(self, stack: Stack) -> float:
        """Return what the adapter of a layer keeps of a token."""
        adapters, w, d = self._model.adapters, self._w, self._d
        if adapters is None or not adapters.used or not self._model.has_adapters(stack):
            return 0.0
        inner = adapters.width(d) * w
        wide = _GATED if adapters.activation in GATED_ACTIVATIONS else 2
        kept = 2 * d * w + _PLAIN.get(adapters.activation, wide) * inner + self._statistics(1)
        if adapters.gate:
            kept += d * w
        if adapters.tags:
            kept += d * w  # rows of the sentences of an adapter
        return kept + self._mask(d, self._model.dropout)

    def _changes(self, stack: Stack, num_experts: int) -> float:
        """Return what the low-rank changes of a layer's maps keep of a token."""
        model, d, attention = self._model, self._d, self._attention
        lora = model.lora_of(stack)
        if lora is None:
            return 0.0
        inner = model.inner_width(model.ffn_dim)
        attentions = [(d, ("query", "key", "value")), (attention, ("output",))]
        if stack == "decoder":
            attentions += [(d, ("query",)), (d, ("key", "value")), (attention, ("output",))]
        maps = attentions if num_experts else [*attentions, (d, ("up",)), (inner, ("down",))]
        kept = 0.0
        for inputs, names in maps:
            changed = sum(name in lora.modules for name in names)
            changed *= 2 if names == ("up",) and model.is_gated else 1
            kept += changed * lora.rank * self._w
            if changed and lora.dropout:
                kept += inputs * self._w + self._mask(inputs, lora.dropout)
        return kept

    def _changed_experts(self, stack: Stack, num_experts: int) -> float:
        """Return what experts with low-rank changes keep: the changed weights of all of them."""
        model, lora = self._model, self._model.lora_of(stack)
        if model.moe is None or lora is None or "experts" not in lora.modules:
            return 0.0
        weights = model.ffn_weights(self._d, model.moe.ffn_dim or model.ffn_dim)
        return num_experts / self._expert_parallel * weights * self._w

    def _experts(self, moe: MoeConfig, num_experts: int) -> float:
        """Return what experts, their router and the dense branch keep of a token."""
        model, w, d = self._model, self._w, self._d
        width = model.inner_width(moe.ffn_dim or model.ffn_dim)
        rows = moe.top_k  # none is dropped, at worst
        dropout = moe.dropout_of_experts(model.activation_dropout)
        if self._device.groups_experts or model.has_inner_norms:
            inner = self._feed_forward(width, dropout) + (
                2 * INDEX if not model.has_inner_norms else 0
            )
        else:
            inner = (2 if model.is_gated else 1) * width * w
            inner += self._mask(width, dropout)
        kept = rows * (2 * d * w + inner + 4 * INDEX + FLOAT)
        kept += _ROUTER_TENSORS * num_experts * FLOAT
        if w != FLOAT:
            kept += d * FLOAT  # the router reads float32
        if moe.noise == "jitter":
            kept += d * FLOAT * (2 if w == FLOAT else 1)
        dense = moe.dense_width(moe.ffn_dim or model.ffn_dim)
        if dense:
            kept += self._feed_forward(model.inner_width(dense))
        if moe.residual or moe.conditional_budget is not None:
            kept += 2 * d * w  # both outputs, for their weights
        return kept
