"""Drop the experts that a language or a domain needs least.

An expert's importance for a text is the mean probability that the router gives it, times the share
of tokens that choose it (after Koishekenov et al., 2023, "Memory-efficient NLLB-200:
Language-specific Expert Pruning of a Massively Multilingual Machine Translation Model",
arXiv:2212.09811). The most important ones of each layer stay, without further training, and become
a new export.

Legend: ``E`` experts, ``B`` sentences, ``S`` and ``T`` source and target length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.data.batch import seq2seq_batch
from ds_seq.data.progress import Progress
from ds_seq.data.shards import TokenBlock
from ds_seq.errors import UserError
from ds_seq.generation.translate import BatchLimits
from ds_seq.models import build_model
from ds_seq.moe.cosine import CosineRouter
from ds_seq.moe.layer import MoeFeedForward
from ds_seq.moe.router import Routing, rows_of
from ds_seq.text.tokenizer import Symbols
from ds_seq.weights.fill import model_tensors

Ids = tuple[list[int], list[int]]
"""Source and target of a sentence, without end symbols."""


class _Sums:
    """What one router has done so far."""

    def __init__(self, num_experts: int) -> None:
        self.probability = torch.zeros(num_experts, dtype=torch.float64)
        self.usage = torch.zeros(num_experts, dtype=torch.float64)
        self.tokens = 0

    def add(self, routing: Routing, rows: Tensor) -> None:
        """Count one forward, whatever the rows were; see `listening`."""
        chosen = routing.experts if routing.valid is None else routing.experts[routing.valid]
        self.probability += routing.probabilities.sum(0).double().cpu()
        self.usage += torch.bincount(chosen.flatten(), minlength=len(self.usage)).double().cpu()
        self.tokens += len(routing.probabilities)

    def importance(self) -> Tensor:
        """(E,): mean probability times share of tokens."""
        return self.probability * self.usage / max(self.tokens, 1) ** 2


def moe_layers(model: nn.Module) -> dict[str, MoeFeedForward]:
    """The layers with experts by name, those of the encoder first."""
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
    """How important each expert is for a text.

    Args:
        model: in evaluation mode, on ``device``.
        pairs: sentences with their translations; at least one token.
        symbols: of the target; `Symbols.eos` ends the source, too.
        limits: size of batches and of sentences.
        device: where the model is.

    Returns:
        (E,) float64 for each layer with experts, by name.
    """
    sums = {name: _Sums(layer.num_experts) for name, layer in moe_layers(model).items()}
    hear = {name: heard.add for name, heard in sums.items()}
    with listening(model, hear), Progress("calibrate", len(pairs), "sentences") as progress:
        for batch in _batches(pairs, limits):
            source, target = (
                TokenBlock.of([[*ids, symbols.eos] for ids in side])
                for side in zip(*batch, strict=True)
            )
            model(seq2seq_batch(source, target, symbols).to(device).inputs)
            progress(len(batch))
    return {name: layer.importance() for name, layer in sums.items()}


@contextmanager
def listening(
    model: nn.Module, hear: Mapping[str, Callable[[Routing, Tensor], None]]
) -> Iterator[None]:
    """Within the block, tell what the routers of some layers decide.

    Args:
        model: has layers with experts.
        hear: by name of the layer; called in every forward with the router's answer for N tokens
            and with what it has looked at, the (N, D) input of the layer.
    """

    def hook(heard: Callable[[Routing, Tensor], None]) -> Any:
        return lambda gate, inputs, routing: heard(routing, rows_of(inputs[0], inputs[1]))

    layers = moe_layers(model)
    handles = [layers[name].gate.register_forward_hook(hook(heard)) for name, heard in hear.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _batches(pairs: Sequence[Ids], limits: BatchLimits) -> Iterator[list[Ids]]:
    """Sentences of similar length together, cut to what the model can take."""
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
    """The most important experts of each layer, as many as ``keep`` says, in ascending order."""
    return {
        name: sorted(values.argsort(descending=True, stable=True)[:count].tolist())
        for (name, values), count in zip(importance.items(), keep, strict=True)
    }


@torch.no_grad()
def prune(
    model: nn.Module, config: ExperimentConfig, vocab_size: int, kept: Mapping[str, list[int]]
) -> tuple[nn.Module, ExperimentConfig]:
    """A model with those experts only, and the experiment that describes it.

    Args:
        model: stays as it is.
        config: describes ``model``.
        vocab_size: number of tokens.
        kept: experts by layer.

    Returns:
        The smaller model, on the CPU, and its experiment.

    Raises:
        UserError: the routers of the layers differ in more than their experts.
    """
    smaller_config = _config(config, model, kept)
    smaller = build_model(smaller_config.model, vocab_size, 1, 0, seed=config.train.seed)
    rows = _expert_rows(model, kept)
    old = dict(model_tensors(model))
    for name, tensor in model_tensors(smaller):
        value = old[name].cpu()
        value = value[rows[name]] if name in rows else value
        assert value.shape == tensor.shape, f"{name}: {value.shape} is not {tensor.shape}"
        tensor.copy_(value)
    return smaller.requires_grad_(False).eval(), smaller_config


def _expert_rows(model: nn.Module, kept: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """The rows that stay, for each tensor that has a row for each expert."""
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
    data["train"]["expert_parallel"] = 1  # that of the training need not divide the counts
    return ExperimentConfig.model_validate(data)


def _router_dim(model: nn.Module) -> int | None:
    """What `model.moe.router_dim` must say now: left open, it would follow from the new counts."""
    gates = [layer.gate for layer in moe_layers(model).values()]
    widths = {len(gate.projection) for gate in gates if isinstance(gate, CosineRouter)}
    if len(widths) > 1:
        raise UserError(
            f"model.moe.router_dim: is null, so the routers are {sorted(widths)} wide; layers of "
            "such a model cannot be pruned together"
        )
    return widths.pop() if widths else None


def parse_keep(text: str, model: nn.Module, config: ExperimentConfig) -> list[int]:
    """The number of experts that each layer keeps, as ``--keep`` says it.

    Args:
        text: ``4``, or a count for each layer as in ``4,2,4``.
        model: has the layers.
        config: describes it.

    Raises:
        UserError: that is not possible.
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
