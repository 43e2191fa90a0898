"""``ds-seq prune-experts``: drop the experts that a language or a domain needs least.

An expert's importance for a text is the mean probability that the gate gives it, times the share of
tokens that choose it (after Koishekenov et al., 2023, "Memory-efficient NLLB-200: Language-specific
Expert Pruning of a Massively Multilingual Machine Translation Model", arXiv:2212.09811). The most
important ones of each layer stay, untrained any further, and become a new export.

Legend: ``E`` experts, ``B`` sentences, ``S`` and ``T`` source and target length.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ds_seq import distributed
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.data.clean import normalise
from ds_seq.data.padding import pad_rows
from ds_seq.data.progress import Progress
from ds_seq.data.vocab import Vocab
from ds_seq.errors import UserError
from ds_seq.generation.scoring import Score, Scorer
from ds_seq.generation.text import check_counts, read_lines, read_parallel
from ds_seq.generation.translate import BatchLimits, translate
from ds_seq.interop.export import check_new, write_export
from ds_seq.interop.run_folder import DTYPES, LoadedRun, load_run
from ds_seq.models import build_model
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.models.weights import model_tensors
from ds_seq.moe.cosine import CosineGate
from ds_seq.moe.gate import Routing, rows_of
from ds_seq.moe.layer import MoeFeedForward
from ds_seq.tasks import build_limits, build_search
from ds_seq.tasks.translation import RawSplit, read_raw

Ids = tuple[list[int], list[int]]
"""Source and target of a sentence, without end symbols."""


class _Texts(NamedTuple):
    """What the command reads."""

    calibration: list[str]
    calibration_target: list[str] | None
    source: list[str]
    reference: list[str]


class _Sums:
    """What one gate has done so far."""

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
    model: nn.Module, pairs: Sequence[Ids], vocab: Vocab, limits: BatchLimits, device: torch.device
) -> dict[str, Tensor]:
    """How important each expert is for a text.

    Args:
        model: in evaluation mode, on ``device``.
        pairs: sentences with their translations; at least one token.
        vocab: for its padding and end symbols.
        limits: size of batches and of sentences.
        device: where the model is.

    Returns:
        (E,) float64 for each layer with experts, by name.
    """
    sums = {name: _Sums(layer.num_experts) for name, layer in moe_layers(model).items()}
    hear = {name: heard.add for name, heard in sums.items()}
    with listening(model, hear), Progress("calibrate", len(pairs), "sentences") as progress:
        for batch in _batches(pairs, limits):
            end = vocab.eos_id
            src = pad_rows([[*source, end] for source, _ in batch], vocab.pad_id).to(device)
            tgt_in = pad_rows([[end, *target] for _, target in batch], vocab.pad_id).to(device)
            model(src, tgt_in, tgt_in != vocab.pad_id)
            progress(len(batch))
    return {name: layer.importance() for name, layer in sums.items()}


@contextmanager
def listening(
    model: nn.Module, hear: Mapping[str, Callable[[Routing, Tensor], None]]
) -> Iterator[None]:
    """Within the block, tell what the gates of some layers decide.

    Args:
        model: has layers with experts.
        hear: by name of the layer; called in every forward with the gate's answer for N tokens and
            with what it has looked at, the (N, D) input of the layer.
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
    smaller = build_model(smaller_config.model, vocab_size, seed=config.train.seed)
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
    widths = {len(gate.projection) for gate in gates if isinstance(gate, CosineGate)}
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


def main(argv: Sequence[str]) -> int:
    """Command line of ``ds-seq prune-experts``."""
    options = _parser().parse_args(argv)
    check_new(options.out)
    distributed.keep_freed_memory()
    device = distributed.World().device
    run = load_run(options.run, options.checkpoint, device, torch.float32)
    keep = parse_keep(options.keep, run.model, run.config)
    texts = _read(options, run.config)
    scorer = Scorer(run.config.data.target_lang)
    pairs = _pairs(run, texts, device)
    found = importance(run.model, pairs, run.vocab, _limits(run.config), device)
    kept = best_experts(found, keep)
    smaller, config = prune(run.model, run.config, len(run.vocab), kept)
    before = _score(run, texts, scorer, device, "translate, all experts")
    smaller.to(device)
    pruned = LoadedRun(config, run.vocab, smaller, options.out)
    after = _score(pruned, texts, scorer, device, "translate, pruned")
    path = write_export(smaller.to("cpu", DTYPES[options.dtype]), config, run.vocab, options.out)
    print("\n".join(_report(found, kept)))
    old, new = (sum(p.numel() for p in model.parameters()) for model in (run.model, smaller))
    print(f"parameters  {old:,} -> {new:,} ({100 * (new - old) / old:+.1f}%)")
    for score, label in ((before, "before"), (after, "after")):
        print(f"{label:10}  {score}")
    print(f"{path}: {path.stat().st_size / 1e6:,.1f} MB")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ds-seq prune-experts",
        description="Keep the experts that a text needs most, as a smaller model for that kind of "
        "text. Prints what each layer keeps, and BLEU before and after. Trains nothing.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("run", type=Path, help="run folder, or a file or folder that `ds-seq export` made")
    add("--keep", required=True, metavar="N",
        help="experts a layer, or a number for each layer: 4,2,4")  # fmt: skip
    add("--calibration", required=True, metavar="FILE", help="raw source text of that kind")
    add("--calibration-target", metavar="FILE",
        help="its translation (default: what the model makes of it)")  # fmt: skip
    add("--out", type=Path, required=True,
        help="new file (NAME.safetensors) or folder to write, as `ds-seq export` does")  # fmt: skip
    add("--checkpoint", default="best", help="best, last, a name or a path (default: %(default)s)")
    add("--dtype", choices=sorted(DTYPES), default="fp32", help="precision on disk")
    add("--input", metavar="FILE", help="raw text to score on (default: data.raw.test)")
    add("--reference", metavar="FILE", help="its reference")
    return parser


def _read(options: argparse.Namespace, config: ExperimentConfig) -> _Texts:
    calibration = read_lines(options.calibration)
    if not any(normalise(line, nfkc=False) for line in calibration):
        raise UserError(f"{options.calibration}: has no text to calibrate on")
    target = None
    if options.calibration_target is not None:
        target = read_lines(options.calibration_target)
        check_counts(calibration, options.calibration, target, options.calibration_target)
    if (options.input is None) != (options.reference is None):
        raise UserError("--input and --reference belong together: give both or none of them")
    if options.input is not None:
        source, reference = read_parallel(options.input, options.reference)
    elif config.data.raw.test:
        text = read_raw("test", [RawSplit(p.source, p.target) for p in config.data.raw.test])
        source, reference = text.source, text.target
    else:
        raise UserError("data.raw.test: names no text; give --input FILE and --reference FILE")
    if not reference:
        raise UserError("there is nothing to translate and score: the text is empty")
    return _Texts(calibration, target, source, reference)


def _pairs(run: LoadedRun, texts: _Texts, device: torch.device) -> list[Ids]:
    """The calibration text as ids; lines without text are left out."""
    nfkc = run.config.data.clean.nfkc
    target = texts.calibration_target
    if target is None:
        target = _translations(run, texts.calibration, device, "translate the calibration text")
    sides = [
        run.vocab.encode_lines([normalise(line, nfkc) for line in side])
        for side in (texts.calibration, target)
    ]
    return [(source, output) for source, output in zip(*sides, strict=True) if source]


def _limits(config: ExperimentConfig) -> BatchLimits:
    return build_limits(config.generation, config.model.max_positions)


def _translations(
    run: LoadedRun, lines: Sequence[str], device: torch.device, label: str
) -> list[str]:
    config = run.config
    search = build_search(config.generation, run.vocab, config.model.max_positions)
    clean = [normalise(line, config.data.clean.nfkc) for line in lines]
    model = cast(Seq2SeqTransformer, run.model)  # or an external model with the same methods
    with Progress(label, len(lines), "sentences") as progress:
        found = translate(
            model, run.vocab, clean, search, _limits(config), device, progress=progress
        )
    assert found is not None, "one process has all lines"
    return found.lines


def _score(
    run: LoadedRun, texts: _Texts, scorer: Scorer, device: torch.device, label: str
) -> Score:
    """BLEU of the model on the test text."""
    return scorer(_translations(run, texts.source, device, label), texts.reference)[0]


def _report(found: Mapping[str, Tensor], kept: Mapping[str, list[int]]) -> Iterator[str]:
    """A line for each layer: its experts with their importance, the most important first."""
    for name, values in found.items():
        order = values.argsort(descending=True, stable=True).tolist()
        texts = {expert: f"{expert} ({values[expert]:.3g})" for expert in order}
        keeps = " ".join(texts[expert] for expert in order if expert in kept[name])
        drops = " ".join(texts[expert] for expert in order if expert not in kept[name])
        yield f"{name}  keeps {keeps}  drops {drops or 'none'}"
