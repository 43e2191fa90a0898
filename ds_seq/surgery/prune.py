"""Drop the least important experts for a language or a domain.

An expert's importance for a text is the mean probability that the router gives it, times the share
of tokens that choose it (after Koishekenov et al., 2023, "Memory-efficient NLLB-200:
Language-specific Expert Pruning of a Massively Multilingual Machine Translation Model",
arXiv:2212.09811). The most important experts of each layer are kept without further training and
become a new export.

Shapes: `E` experts, `N` tokens, `D` model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.data.batch import Batch, seq2seq_batch
from ds_seq.data.progress import Progress
from ds_seq.data.shards import TokenBlock
from ds_seq.errors import UserError
from ds_seq.generation.translate import BatchLimits
from ds_seq.models import build_model
from ds_seq.moe.cosine import CosineRouter
from ds_seq.moe.layer import MoeFeedForward
from ds_seq.moe.router import Routing, rows_of
from ds_seq.text.tokenizer import Symbols, VocabSizes
from ds_seq.weights.fill import model_tensors

Ids = tuple[list[int], list[int]]
"""Source and target of a sentence, without end symbols."""


class _Sums:
    """Sums of one router's probabilities and choices."""

    def __init__(self, num_experts: int) -> None:
        self.probability = torch.zeros(num_experts, dtype=torch.float64)
        self.usage = torch.zeros(num_experts, dtype=torch.float64)
        self.tokens = 0

    def add(self, routing: Routing, rows: Tensor) -> None:
        """Add the routing of one forward; see `routing_callbacks`."""
        chosen = routing.experts if routing.valid is None else routing.experts[routing.valid]
        self.probability += routing.probabilities.sum(0).double().cpu()
        self.usage += torch.bincount(chosen.flatten(), minlength=len(self.usage)).double().cpu()
        self.tokens += len(routing.probabilities)

    def importance(self) -> Tensor:
        """Return the importance (E,): mean probability times share of tokens."""
        return self.probability * self.usage / max(self.tokens, 1) ** 2


def moe_layers(model: nn.Module) -> dict[str, MoeFeedForward]:
    """Return the layers with experts by name, encoder layers first."""
    modules = model.named_modules()
    return {name: module for name, module in modules if isinstance(module, MoeFeedForward)}


@torch.inference_mode()
def importance(
    model: nn.Module,
    pairs: Sequence[Ids],
    symbols: Symbols,
    limits: BatchLimits,
    device: torch.device,
) -> dict[str, Tensor]:
    """Measure how important each expert is for a text.

    Args:
        model: the model, in evaluation mode, on `device`.
        pairs: sentences with their translations, with at least one token in total.
        symbols: symbols of the target; `Symbols.eos` also ends the source.
        limits: maximum size of batches and of sentences.
        device: device of the model.

    Returns:
        Importance (E,), float64, of the experts of each layer, by name.
    """
    sums = {name: _Sums(layer.num_experts) for name, layer in moe_layers(model).items()}
    callbacks = {name: layer.add for name, layer in sums.items()}
    with routing_callbacks(model, callbacks):
        for batch in calibration_batches(pairs, symbols, limits, device):
            model(batch.inputs)
    return {name: layer.importance() for name, layer in sums.items()}


def calibration_batches(
    pairs: Sequence[Ids], symbols: Symbols, limits: BatchLimits, device: torch.device
) -> Iterator[Batch]:
    """Yield batches of sentences of similar length, truncated to the model's maximum.

    Args:
        pairs: sentences with their translations.
        symbols: symbols of the target; `Symbols.eos` also ends the source.
        limits: maximum size of batches and of sentences.
        device: device of the batches.
    """
    with Progress("calibrate", len(pairs), "sentences") as progress:
        for batch in _batches(pairs, limits):
            source, target = (
                TokenBlock.of([[*ids, symbols.eos] for ids in side])
                for side in zip(*batch, strict=True)
            )
            yield seq2seq_batch(source, target, symbols).to(device)
            progress(len(batch))


@contextmanager
def routing_callbacks(
    model: nn.Module, callbacks: Mapping[str, Callable[[Routing, Tensor], None]]
) -> Iterator[None]:
    """Call functions with the routing of some layers within a `with` block.

    Args:
        model: a model that has layers with experts.
        callbacks: functions by name of the layer, called in every forward with the routing of N
            tokens and the layer's input rows (N, D).
    """

    def hook(callback: Callable[[Routing, Tensor], None]) -> Any:
        return lambda gate, inputs, routing: callback(routing, rows_of(inputs[0], inputs[1]))

    layers = moe_layers(model)
    handles = [
        layers[name].gate.register_forward_hook(hook(callback))
        for name, callback in callbacks.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _batches(pairs: Sequence[Ids], limits: BatchLimits) -> Iterator[list[Ids]]:
    """Yield batches of similar length, with sentences truncated to the model's maximum."""
    longest = limits.max_source_length - 1  # room for the end symbol
    cut = [(source[:longest], target[:longest]) for source, target in pairs]
    batch: list[Ids] = []
    for pair in sorted(cut, key=_length):
        full = (len(batch) + 1) * (_length(pair) + 1) > limits.max_tokens
        if batch and (full or len(batch) == limits.max_sentences):
            yield batch
            batch = []
        batch.append(pair)
    if batch:
        yield batch


def _length(pair: Ids) -> int:
    return max(map(len, pair))


def best_experts(importance: Mapping[str, Tensor], keep: Sequence[int]) -> dict[str, list[int]]:
    """Return the `keep` most important experts of each layer, in ascending order."""
    return {
        name: sorted(values.argsort(descending=True, stable=True)[:count].tolist())
        for (name, values), count in zip(importance.items(), keep, strict=True)
    }


@torch.no_grad()
def prune(
    model: nn.Module,
    config: ExperimentConfig,
    vocab: VocabSizes | int,
    kept: Mapping[str, list[int]],
) -> tuple[nn.Module, ExperimentConfig]:
    """Build a model with some of the experts, and the experiment that describes it.

    Args:
        model: the model to prune; it is not changed.
        config: experiment that describes `model`.
        vocab: number of ids of source and target, or of both.
        kept: experts to keep, by layer.

    Returns:
        The smaller model, on the CPU, and its experiment.

    Raises:
        UserError: the routers of the layers differ in more than their experts, or are fixed.
    """
    if config.model.moe is not None and config.model.moe.router == "hash":
        raise UserError(
            "model.moe.router: hash deals tokens out to all experts, so none can be taken out; "
            "ds-seq make-student --dense merges them"
        )
    smaller_config = _config(config, model, kept)
    smaller = build_model(smaller_config.model, vocab, 1, 0, seed=config.train.seed)
    rows = _expert_rows(model, kept)
    old = dict(model_tensors(model))
    for name, tensor in model_tensors(smaller):
        value = old[name].cpu()
        value = value[rows[name]] if name in rows else value
        assert value.shape == tensor.shape, f"{name}: {value.shape} is not {tensor.shape}"
        tensor.copy_(value)
    return smaller.requires_grad_(False).eval(), smaller_config


def _expert_rows(model: nn.Module, kept: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """Return the rows to keep, for each tensor that has one row per expert."""
    rows = {}
    for name, layer in moe_layers(model).items():
        for part, _ in layer.experts.named_parameters():
            rows[f"{name}.experts.{part}"] = kept[name]
        for part in layer.gate.expert_tensors:
            rows[f"{name}.gate.{part}"] = kept[name]
    return rows


def _config(
    config: ExperimentConfig, model: nn.Module, kept: Mapping[str, list[int]]
) -> ExperimentConfig:
    counts = [len(experts) for experts in kept.values()]
    data: dict[str, Any] = config.model_dump(mode="json")
    moe = data["model"]["moe"]
    moe["num_experts"] = counts if len(set(counts)) > 1 else counts[0]
    moe["router_dim"] = _router_dim(model)
    data["train"]["expert_parallel"] = 1  # the old value may not divide the new counts
    return ExperimentConfig.model_validate(data)


def _router_dim(model: nn.Module) -> int | None:
    """Return an explicit `model.moe.router_dim`: by default it depends on the number of experts."""
    gates = [layer.gate for layer in moe_layers(model).values()]
    widths = {len(gate.projection) for gate in gates if isinstance(gate, CosineRouter)}
    if len(widths) > 1:
        raise UserError(
            f"model.moe.router_dim: is null, so the routers are {sorted(widths)} wide; layers of "
            "such a model cannot be pruned together"
        )
    return widths.pop() if widths else None


def parse_keep(text: str, model: nn.Module, config: ExperimentConfig) -> list[int]:
    """Parse `--keep`, the number of experts that each layer keeps.

    Args:
        text: `4`, or a count for each layer such as `4,2,4`.
        model: the model to prune.
        config: experiment that describes the model.

    Returns:
        One count per layer.

    Raises:
        UserError: the counts are malformed or do not fit the layers.
    """
    layers, moe = moe_layers(model), config.model.moe
    if moe is None or not layers:
        raise UserError(f"{config.name}: is a dense model, there are no experts to prune")
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise UserError(f"--keep {text}: give a number, or one for each layer such as 4,2,4")
    counts = [int(part) for part in text.split(",")]
    if len(counts) == 1:
        counts *= len(layers)
    if len(counts) != len(layers):
        raise UserError(
            f"--keep {text}: {len(counts)} counts for {len(layers)} layers with experts "
            f"({', '.join(layers)})"
        )
    for (name, layer), count in zip(layers.items(), counts, strict=True):
        if count > layer.num_experts:
            raise UserError(
                f"--keep {text}: {name} has only {layer.num_experts} experts; keep fewer"
            )
        if count < moe.top_k:
            raise UserError(
                f"--keep {text}: a token visits model.moe.top_k={moe.top_k} experts; "
                f"keep at least {moe.top_k}"
            )
    return counts
