"""Cut out the least important attention heads of a trained model.

The importance of a head for a sentence is how much the loss would change if its output were scaled:
the absolute value of the derivative by a factor of the head that is 1 (Michel et al., 2019, "Are
Sixteen Heads Really Better than One?", arXiv:1905.10650). Its mean over sentences is divided, as in
the paper, by the Euclidean norm of the importance of all heads of the same attention. Heads that
share keys and values are cut out together; their importance is added up.

The smaller model computes exactly what the larger one would with the outputs of these heads set to
zero.

Shapes: B sentences, T tokens, H heads, G groups of heads that share keys and values, Dh width of a
head, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.model import TransformerConfig
from ds_seq.data.batch import Batch
from ds_seq.errors import UserError
from ds_seq.generation.translate import BatchLimits
from ds_seq.models import build_model
from ds_seq.modules.attention import CrossAttention, SelfAttention
from ds_seq.names import ATTENTION_KINDS, AttentionKind, Stack
from ds_seq.surgery.prune import Ids, calibration_batches
from ds_seq.text.tokenizer import Symbols, VocabSizes
from ds_seq.weights.fill import model_tensors

_PLACES: dict[AttentionKind, tuple[Stack, str]] = {
    "encoder": ("encoder", "self_attention"),
    "decoder": ("decoder", "self_attention"),
    "cross": ("decoder", "cross_attention"),
}


class AttentionOfLayer(NamedTuple):
    """An attention of a model: its kind and its layer."""

    kind: AttentionKind
    layer: int

    def __str__(self) -> str:
        return f"{self.kind} {self.layer}"


Groups = dict[AttentionOfLayer, list[int]]
"""Groups of heads by attention, numbered as they are in the model."""


def attentions(
    model: nn.Module, config: TransformerConfig
) -> dict[AttentionOfLayer, SelfAttention | CrossAttention]:
    """Return the attentions of a model: of the encoder, of the decoder, then to the source.

    Heads of retention and of convolutions are none of them.
    """
    found = {}
    for kind in ATTENTION_KINDS:
        stack, name = _PLACES[kind]
        if kind != "cross" and not config.has_self_attention(stack):
            continue
        for layer in range(config.encoder_layers if stack == "encoder" else config.decoder_layers):
            module = model.get_submodule(f"{stack}.layers.{layer}.{name}")
            assert isinstance(module, SelfAttention | CrossAttention)
            found[AttentionOfLayer(kind, layer)] = module
    return found


def prunable(config: ExperimentConfig, run: object) -> TransformerConfig:
    """Return the model section of an experiment whose heads can be cut out.

    Args:
        config: the experiment.
        run: where it is from, for messages.

    Raises:
        UserError: cutting out a head would change what is left of the model.
    """
    model = config.model
    if not isinstance(model, TransformerConfig) or len(model.stacks) == 1:
        raise UserError(f"{run}: model.name {model.name} is no encoder-decoder of ds_seq")
    if model.has_inner_norms:
        raise UserError(
            f"{run}: norm_position subln has a norm over all heads, so none can be cut out alone"
        )
    if model.linear.name != "float":
        raise UserError(
            f"{run}: model.linear {model.linear.name} rounds the maps of all heads with one scale, "
            "so none can be cut out alone; cut them out before you train with such maps"
        )
    return model


@contextmanager
def head_factors(
    factors: Mapping[AttentionOfLayer, Tensor], model: nn.Module, config: TransformerConfig
) -> Iterator[None]:
    """Multiply the outputs of heads by factors (H,) or (B, H) within a `with` block."""

    def hook(factor: Tensor, width: int) -> Any:
        def multiply(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            heads = inputs[0].unflatten(-1, (-1, width))  # (B, T, H, Dh)
            rows = factor.unsqueeze(-2) if factor.dim() > 1 else factor  # (B, 1, H) or (H,)
            return ((heads * rows.unsqueeze(-1)).flatten(-2), *inputs[1:])

        return multiply

    modules = attentions(model, config)
    handles = [
        modules[where].output.register_forward_pre_hook(hook(factor, modules[where].head_width))
        for where, factor in factors.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def head_importance(
    model: nn.Module,
    config: TransformerConfig,
    pairs: Sequence[Ids],
    symbols: Symbols,
    limits: BatchLimits,
    device: torch.device,
) -> dict[AttentionOfLayer, Tensor]:
    """Measure how important each group of heads is for a text.

    Args:
        model: the model, in evaluation mode, on `device`; its parameters need no gradients.
        config: its config.
        pairs: sentences with their translations.
        symbols: symbols of the target; `Symbols.eos` also ends the source.
        limits: maximum size of batches and of sentences.
        device: device of the model.

    Returns:
        Importance (G,), float64, of the groups of each attention; the sum of squares of the heads
        of an attention is 1.
    """
    modules = attentions(model, config)
    sums = {where: torch.zeros(each.num_heads).double() for where, each in modules.items()}
    for batch in calibration_batches(pairs, symbols, limits, device):
        for where, values in _sensitivity(model, config, batch).items():
            sums[where] += values.abs().double().sum(0).cpu()
    sharing = config.head_counts(config.d_model).sharing
    return {
        where: (values / values.norm().clamp(min=1e-30)).unflatten(0, (-1, sharing)).sum(-1)
        for where, values in sums.items()
    }


@torch.enable_grad()
def _sensitivity(
    model: nn.Module, config: TransformerConfig, batch: Batch
) -> dict[AttentionOfLayer, Tensor]:
    """Return the derivative of the loss of each sentence by the factor of each head, (B, H)."""
    count = len(batch.labels)
    factors = {
        where: torch.ones(count, each.num_heads, device=batch.labels.device, requires_grad=True)
        for where, each in attentions(model, config).items()
    }
    with head_factors(factors, model, config):
        logits = model(batch.inputs).logits
    # sentences share nothing, so the gradient of the sum has the gradients of all of them
    loss = nn.functional.cross_entropy(logits.float(), batch.labels[batch.mask], reduction="sum")
    gradients = torch.autograd.grad(loss, list(factors.values()))
    return dict(zip(factors, gradients, strict=True))


def keep_number(importance: Mapping[AttentionOfLayer, Tensor], groups: int) -> Groups:
    """Return the `groups` most important groups of each attention, in ascending order."""
    return {
        where: sorted(values.argsort(descending=True, stable=True)[:groups].tolist())
        for where, values in importance.items()
    }


def drop_fraction(importance: Mapping[AttentionOfLayer, Tensor], fraction: float) -> Groups:
    """Drop the least important groups of the whole model, but never the last of an attention.

    Args:
        importance: importance of the groups of each attention.
        fraction: share of all groups to drop.

    Returns:
        The groups that are kept, in ascending order.
    """
    kept = {where: list(range(len(values))) for where, values in importance.items()}
    total = sum(map(len, kept.values()))
    values = [
        (float(value), where, group)
        for where, of_groups in importance.items()
        for group, value in enumerate(of_groups)
    ]
    order = sorted(values, key=lambda entry: entry[0])  # stable: ties in the order of the model
    rest = round(fraction * total)
    for _, where, group in order:
        if rest and len(kept[where]) > 1:
            kept[where].remove(group)
            rest -= 1
    return kept


@torch.no_grad()
def prune_heads(
    model: nn.Module, config: ExperimentConfig, vocab: VocabSizes | int, kept: Groups
) -> tuple[nn.Module, ExperimentConfig]:
    """Build a model with some of the heads, and the experiment that describes it.

    Args:
        model: the model to prune; it is not changed.
        config: experiment that describes `model`.
        vocab: number of ids of source and target, or of both.
        kept: groups of heads to keep, by attention.

    Returns:
        The smaller model, on the CPU, and its experiment.
    """
    assert isinstance(config.model, TransformerConfig)
    data = config.model_dump(mode="json")
    data["model"]["pruned_heads"] = _pruned_section(config.model, kept)
    smaller_config = ExperimentConfig.model_validate(data)
    smaller = build_model(smaller_config.model, vocab, 1, 0, seed=config.train.seed)
    cuts = _cuts(model, config.model, kept)
    old = dict(model_tensors(model))
    for name, tensor in model_tensors(smaller):
        value = old[name].cpu()
        if name in cuts:
            value = value.index_select(cuts[name].axis, cuts[name].rows)
        assert value.shape == tensor.shape, f"{name}: {value.shape} is not {tensor.shape}"
        tensor.copy_(value)
    return smaller.requires_grad_(False).eval(), smaller_config


def _pruned_section(model: TransformerConfig, kept: Groups) -> dict[str, list[list[int]]]:
    """Return `model.pruned_heads`: what was cut out before and what is cut out now."""
    sharing = model.head_counts(model.d_model).sharing
    section: dict[str, list[list[int]]] = {kind: [] for kind in ATTENTION_KINDS}
    for where, groups in kept.items():
        heads = model.kept_heads(where.kind, where.layer) or list(range(model.num_heads))
        left = {heads[group * sharing + place] for group in groups for place in range(sharing)}
        section[where.kind].append([h for h in range(model.num_heads) if h not in left])
    return section


class _Cut(NamedTuple):
    """Indices to keep along an axis of a tensor."""

    axis: int
    rows: Tensor


def _cuts(model: nn.Module, config: TransformerConfig, kept: Groups) -> dict[str, _Cut]:
    """Return what to keep of each tensor that has features of heads, by name."""
    sharing = config.head_counts(config.d_model).sharing
    cuts: dict[str, _Cut] = {}
    for where, module in attentions(model, config).items():
        stack, name = _PLACES[where.kind]
        prefix = f"{stack}.layers.{where.layer}.{name}"
        width = module.head_width
        shared = _features(kept[where], width)
        own = _features([g * sharing + n for g in kept[where] for n in range(sharing)], width)
        offset = module.num_heads * width
        step = offset // sharing  # features of all keys, and of all values
        if isinstance(module, SelfAttention):
            parts = {"qkv": [own, offset + shared, offset + step + shared]}
        else:
            parts = {"query": [own], "key_value": [shared, step + shared]}
        for part, rows in parts.items():
            for map_name, tensor in product(_maps(config, stack, part), ("weight", "bias")):
                cuts[f"{prefix}.{map_name}.{tensor}"] = _Cut(0, torch.cat(rows))
        for map_name in _maps(config, stack, "output"):
            cuts[f"{prefix}.{map_name}.weight"] = _Cut(1, own)
    return cuts


def _maps(config: TransformerConfig, stack: Stack, name: str) -> list[str]:
    """Return the names of a map in an attention: several with sets of parameters."""
    sets = config.sets_of(stack)
    return [name] if sets == 1 else [f"{name}.sets.{number}" for number in range(sets)]


def _features(blocks: Sequence[int], width: int) -> Tensor:
    """Return the indices of all features of some blocks of features."""
    return (torch.tensor(blocks).unsqueeze(1) * width + torch.arange(width)).flatten()
