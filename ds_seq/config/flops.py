"""Arithmetic of training a model, from its config: floating point operations of matrix products.

Counted as in PaLM (Chowdhery et al. 2022, appendix B): 2 per weight and token forward, twice that
backward, and products of queries, keys and values in full, masked ones included. What is computed a
second time (activation checkpointing) and padding do not count. Of experts, those that a token
chooses count. Retention counts as computed at once, and in chunks if `chunk_size` is given. In
dilated attention, texts count as one segment where segments are as long as `max_positions`, and as
many whole ones where they are shorter. Of a convolution, the tokens under a kernel count, not the
zeros of its bands. How many tokens are in each band of adaptive embeddings is estimated by Zipf's
law. The network of character embeddings, which reads each different token of a batch once, does not
count.

Shapes: `S` source tokens and `T` target tokens of a sentence.
"""

from __future__ import annotations

from ds_seq.config.model.dilated import DilatedConfig
from ds_seq.config.model.encoder_input import EncoderInputConfig
from ds_seq.config.model.retention import RetentionConfig
from ds_seq.config.model.router import ExternalRouterConfig
from ds_seq.config.model.section import Flops, OtherModel
from ds_seq.config.model.transformer import TransformerConfig
from ds_seq.names import ATTENTION_KINDS, GATED_ACTIVATIONS, AttentionKind, Stack

_FORWARD_AND_BACKWARD = 3


def training_flops(model: object, vocab_size: int, num_passes: int = 1) -> Flops | None:
    """Return the operations of forward and backward of a model; None for one from outside ds_seq.

    Args:
        model: the `model` section.
        vocab_size: size of the vocabulary of the target.
        num_passes: how often the model reads each batch.
    """
    forward = forward_flops(model, vocab_size)
    if forward is None:
        return None
    total = Flops(*(num_passes * _FORWARD_AND_BACKWARD * each for each in forward))
    read = model.language_model if isinstance(model, TransformerConfig) else None
    if read is None or read.weights != "frozen":
        return total
    backward = num_passes * (_FORWARD_AND_BACKWARD - 1)
    return Flops(
        *(a - backward * b for a, b in zip(total, _of_input(read, vocab_size), strict=True))
    )


def forward_flops(model: object, vocab_size: int) -> Flops | None:
    """Return the operations of a forward pass; None for a model from outside ds_seq.

    Args:
        model: the `model` section.
        vocab_size: size of the vocabulary of the target.
    """
    if isinstance(model, OtherModel):
        return model.forward_flops(vocab_size)
    if not isinstance(model, TransformerConfig):
        return None
    own = _of_transformer(model, vocab_size)
    if model.language_model is None:
        return own
    read = _of_input(model.language_model, vocab_size)
    width = model.language_model.section.d_model
    projection = 0 if width == model.d_model else 2 * width * model.d_model
    sums = Flops(*(a + b for a, b in zip(own, read, strict=True)))
    return sums._replace(per_source=sums.per_source + projection)


def _of_input(language_model: EncoderInputConfig, vocab_size: int) -> Flops:
    """Return the operations of a language model that reads the source and scores no token."""
    found = _of_transformer(language_model.section, vocab_size, scores=False)
    pairs = found.per_source_pair + found.per_target_pair
    return Flops(found.per_source + found.per_target, 0, pairs, 0, 0)


def _of_transformer(model: TransformerConfig, vocab_size: int, scores: bool = True) -> Flops:
    d, head = model.d_model, model.head_width(model.d_model)
    own: dict[Stack, int] = {"encoder": 0, "decoder": 0}
    own |= {stack: _per_token(model, stack) for stack in model.stacks}
    heads = {kind: _heads(model, kind) for kind in ATTENTION_KINDS}
    if len(model.stacks) == 1:
        heads["cross"] = 0
    pairs = {kind: 2 * 2 * head * heads[kind] for kind in ATTENTION_KINDS}
    for stack in model.stacks:
        retention = model.retention_of(stack)
        if retention is not None:
            states, pair = _retained(model, retention, causal=stack == "decoder")
            own[stack] += model.calls_of(stack) * states
            pairs[stack] = model.calls_of(stack) * pair
        elif not model.has_self_attention(stack):
            pairs[stack] = 0
        dilated = model.dilated_of(stack)
        if dilated is not None:
            keys, share = _seen(model, dilated)
            own[stack] += round(pairs[stack] / 2 * keys)
            pairs[stack] = round(pairs[stack] * share)
    sharing = model.num_heads // (model.num_kv_heads or model.num_heads)
    moved = 2 * d * head * heads["cross"] // sharing  # keys and values of the source
    if heads["cross"]:
        moved += model.calls_of("decoder") * _changes_of_source(model)
    factor = 0 if model.embedding_dim is None else model.embedding_dim * d
    read, scored = _ends(model, vocab_size, factor)
    output = read + (scored if scores else 0.0)
    return Flops(
        2 * (own["encoder"] + (factor if "encoder" in model.stacks else 0) + moved),
        2 * (own["decoder"] + (factor if "decoder" in model.stacks else 0) + output - moved),
        pairs["encoder"],
        pairs["decoder"],
        pairs["cross"],
    )


def _ends(model: TransformerConfig, vocab_size: int, factor: int) -> tuple[float, float]:
    """Return the weights that embed a token, and those that score one, on average.

    Args:
        model: the model.
        vocab_size: size of the vocabulary of the target.
        factor: weights of the second factor of an embedding; 0 if there is none.
    """
    d = model.d_model
    if model.adaptive_bands is not None:
        return model.adaptive_bands.expected_weights(d, vocab_size)
    head = d * d if model.has_dense_head else 0
    if factor and model.shares_output:
        return 0.0, head + factor + vocab_size * (model.embedding_dim or d)
    return 0.0, head + vocab_size * d


def _retained(
    model: TransformerConfig, retention: RetentionConfig, causal: bool
) -> tuple[int, int]:
    """Return half the operations of a retention per token, and its operations per pair of tokens.

    Computed at once, it has products per pair, as attention has; in chunks, products with the
    tokens of a chunk and with the sums over the chunks before, in an encoder also over those after.
    """
    values = retention.values(model.d_model)
    pair = model.d_model + values
    if retention.chunk_size is None:
        return 0, 2 * pair
    states = 2 * model.d_model * values // retention.heads(model.num_heads)
    return retention.chunk_size * pair + states * (1 if causal else 2), 0


def _seen(model: TransformerConfig, dilated: DilatedConfig) -> tuple[float, float]:
    """Return how many keys a query and head see on average, and which share of all tokens.

    Of a segment of w tokens, a head uses w / r tokens as queries, and as many as keys.
    """
    keys = share = 0.0
    for segment, dilation in dilated.segments:
        if segment < model.max_positions:
            keys += segment / dilation**2
        else:
            share += 1 / dilation**2
    return keys, share


def _heads(model: TransformerConfig, kind: AttentionKind) -> int:
    """Return the number of heads of all calls of an attention."""
    stack: Stack = "encoder" if kind == "encoder" else "decoder"
    kept = [model.kept_heads(kind, layer) for layer in range(model.layers_of(stack))]
    counts = (model.num_heads if heads is None else len(heads) for heads in kept)
    return model.repeats_of(stack) * sum(counts)


def _per_token(model: TransformerConfig, stack: Stack) -> int:
    """Return the weights of the maps of all calls of a stack."""
    attention = model.mixer_weights(model.d_model, stack) + model.attention_changes(stack)
    each = attention + _adapter(model, stack)
    counts = model.expert_counts(stack)
    count = sum(each + _feed_forward(model, n) + _change(model, stack, n) for n in counts)
    count += model.kernel_maps(model.d_model, stack, model.layers_of(stack))
    convolution = model.convolution_of(stack)
    if convolution is not None:  # each weight of a kernel multiplies the channels of its head
        sizes = convolution.sizes(model.layers_of(stack))
        count += sum(sizes) * convolution.channels(model.d_model)
    return model.repeats_of(stack) * (count - model.pruned_weights(model.d_model, stack))


def _changes_of_source(model: TransformerConfig) -> int:
    """Return the weights of the low-rank changes of a layer's keys and values of the source."""
    lora = model.lora_of("decoder")
    if lora is None:
        return 0
    width = (model.num_kv_heads or model.num_heads) * model.head_width(model.d_model)
    count = sum(name in lora.modules for name in ("key", "value"))
    return count * lora.rank * (model.d_model + width)


def _change(model: TransformerConfig, stack: Stack, num_experts: int) -> int:
    """Return the weights of the low-rank changes of a dense feed-forward, or of a dense branch.

    Those of experts are added to the weights, which multiplies no token.
    """
    width: int | None = model.ffn_dim
    if model.moe is not None and num_experts:
        width = model.moe.dense_width(model.moe.ffn_dim or model.ffn_dim) or None
    if width is None:
        return 0
    inner, parts = model.inner_width(width), 2 if model.is_gated else 1
    return model.ffn_lora_params(stack, inner, parts, is_expert=False)


def _adapter(model: TransformerConfig, stack: Stack) -> int:
    """Return the weights of the adapter that a token passes through in a layer."""
    adapters, d = model.adapters, model.d_model
    if adapters is None or not adapters.used or not model.has_adapters(stack):
        return 0
    maps = 3 if adapters.activation in GATED_ACTIVATIONS else 2
    return maps * d * adapters.width(d) + (d if adapters.gate else 0)


def _feed_forward(model: TransformerConfig, num_experts: int) -> int:
    """Return the weights that multiply a token in a dense feed-forward, or in those it chooses."""
    d, moe = model.d_model, model.moe
    if moe is None or not num_experts:
        return model.ffn_weights(d, model.ffn_dim)
    width = moe.ffn_dim or model.ffn_dim
    dense = moe.dense_width(width)
    count = moe.top_k * model.ffn_weights(d, width)
    count += model.ffn_weights(d, dense) if dense else 0
    if moe.router == "cosine":
        dim = moe.router_dim or max(num_experts // 2, 16)
        count += dim * (d + num_experts)
    elif not isinstance(moe.router, ExternalRouterConfig):
        count += num_experts * d
    if moe.residual:
        return count + 2 * d
    return count + (d if moe.conditional_budget is not None else 0)
