"""Cost of the axes of a model, per floating point operation, against the plain Transformer.

A side is forward and backward of one encoder layer and one decoder layer, of two and two with a
part that not all models have, or an update of a small model (forward, cross entropy, backward,
Adam). All sides take turns in one process with one thread, and processor time is compared.
Operations are those that `ds-seq train` counts for `mfu`.

    python benchmarks/axes_speed.py
    python benchmarks/axes_speed.py --only before --old ../before    # training in an older checkout
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import compare_trees
import torch
from common import Goal, Section, Spread, add_common_arguments, finish, table
from profiled import peak_activation_bytes
from torch import Tensor
from turns import Rounds, take_turns

from ds_seq.config.flops import training_flops
from ds_seq.config.model import TransformerConfig
from ds_seq.config.model.section import LengthSums
from ds_seq.criterions.cross_entropy import smoothed_cross_entropy
from ds_seq.data.batch import Seq2SeqInputs
from ds_seq.environment import keep_freed_memory
from ds_seq.models.build import build_seq2seq
from ds_seq.models.build.adapters import choose_adapters
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.modules.body import Context
from ds_seq.modules.linear import product
from ds_seq.modules.multiway import Markers
from ds_seq.modules.position_bias import Window

PLAIN, RECURRENT, UNSHARED = "plain", "1 layer called 6 times", "6 layers"
MASK = "256 as a mask"
SENTENCES, LENGTH, VOCAB = 64, 32, 2000
SIZES: dict[str, Any] = {
    "d_model": 256,
    "ffn_dim": 1024,
    "num_heads": 4,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "activation": "relu",
    "dropout": 0.0,
    "norm_position": "pre",
}
AXES: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "norm rms": {"norm": "rms"},
    "activation swiglu": {"activation": "swiglu"},
    "positions rotary": {"positions": "rotary"},
    "all three": {"norm": "rms", "activation": "swiglu", "positions": "rotary"},
    UNSHARED: {"encoder_layers": 6, "decoder_layers": 6},
    RECURRENT: {
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_repeats": 6,
        "decoder_repeats": 6,
    },
}
ADAPTERS, MULTIWAY = "adapters", "multiway"
PARTS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    ADAPTERS: {"adapters": {"ids": ["a"], "active": "a"}},
    "adapters, gated": {"adapters": {"ids": ["a"], "active": "a", "gate": True}},
    "lora of all maps": {
        "lora": {"rank": 8, "modules": ["query", "key", "value", "output", "up", "down"]}
    },
    "half of the heads": {
        "pruned_heads": dict.fromkeys(("encoder", "decoder", "cross"), [[0, 1], [2, 3]])
    },
    MULTIWAY: {"multiway": {"markers": {"a": 0, "b": 1}}},
}
FEW_WORDS = 32  # so that nearly all operations are those of layers
LONG, WINDOWS = 4096, (64, 256)
AXIS_GOAL, RECURRENT_GOAL, PART_GOAL = 1.05, 1.10, 1.10
BEFORE_GOAL, WINDOW_GOAL = 0.98, 0.5
GOALS = {
    **dict.fromkeys(("norm rms", "activation swiglu", "positions rotary"), AXIS_GOAL),
    RECURRENT: RECURRENT_GOAL,
    ADAPTERS: PART_GOAL,
}
_NOT_ONE_LAYER = (UNSHARED, RECURRENT)
_PEAK_SIZE = 1024


@dataclass(frozen=True)
class Side:
    """The code to time, and its floating point operations."""

    call: Callable[[], None]
    flops: float


def layers_of(axis: str) -> Side:
    """Return forward and backward of an encoder layer and a decoder layer.

    Gradients are those of inputs and parameters; they are dropped before each call.
    """
    config = _config(axis, {"encoder_layers": 1, "decoder_layers": 1})
    model = _model(config)
    source, target, grad = (torch.randn(SENTENCES, LENGTH, config.d_model) for _ in range(3))
    leaves = [source.requires_grad_(), target.requires_grad_()]
    leaves += [*model.encoder.parameters(), *model.decoder.parameters()]

    def call() -> None:
        for leaf in leaves:
            leaf.grad = None
        encoded = model.encoder(source, Context()).hidden
        model.decoder(target, Context(source=encoded)).hidden.backward(grad)

    return Side(call, _flops(config, vocab=0))


def part_of(name: str) -> Side:
    """Return forward and backward of a model of two layers in each stack.

    With several sets of parameters, half of the tokens use each.
    """
    config = _config(PLAIN, PARTS[name])
    model = _model(config, FEW_WORDS).train()
    if isinstance(model.markers, Markers):
        model.markers.mark({4: 0, 5: 1})
    source, target = (torch.randint(6, FEW_WORDS, (SENTENCES, LENGTH)) for _ in range(2))
    source[:, 0] = torch.arange(SENTENCES) % 2 + 4
    real = torch.ones(SENTENCES, LENGTH, dtype=torch.bool)
    inputs = Seq2SeqInputs(source, real, target, real, num_targets=real.numel())
    if config.adapters is not None:
        choose_adapters(model, config.adapters)

    def call() -> None:
        model.zero_grad()
        model(inputs).logits.sum().backward()

    return Side(call, _flops(config, FEW_WORDS))


def update_of(axis: str) -> Side:
    """Return an update of a model."""
    config = _config(axis, {})
    model = _model(config).train()
    source, target, labels = (torch.randint(4, VOCAB, (SENTENCES, LENGTH)) for _ in range(3))
    real = torch.ones(SENTENCES, LENGTH, dtype=torch.bool)
    inputs = Seq2SeqInputs(source, real, target, real, num_targets=real.numel())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, foreach=True)

    def call() -> None:
        optimizer.zero_grad()
        logits = model(inputs).logits
        loss, _ = smoothed_cross_entropy(logits, labels.flatten(), 0.1, "fairseq")
        (loss / real.numel()).backward()
        optimizer.step()

    return Side(call, _flops(config, VOCAB))


def axes_section(title: str, sides: Mapping[str, Side], rounds: int, seconds: float) -> Section:
    """Compare all sides with the plain one, recurrent stacking with as many layers of their own."""
    timed = take_turns({name: side.call for name, side in sides.items()}, rounds, seconds)
    peak = _peak(timed.count)
    rows = [_row(name, side, sides, timed, peak) for name, side in sides.items()]
    header = ["side", "GFLOP", "ms", "share of peak", "time to reference", "per FLOP"]
    body = (
        f"{table(header, rows)}\n\nProcessor time, medians (and extremes) of {timed.count} rounds; "
        f"{SENTENCES} sentences of {LENGTH} tokens, width {SIZES['d_model']}/{SIZES['ffn_dim']}, "
        f"fp32, one thread. The reference is the plain side, for recurrent stacking the side with "
        f"6 layers. Peak: {peak / 1e9:.0f} GFLOP/s, products of {_PEAK_SIZE} x {_PEAK_SIZE} "
        "matrices in the same rounds."
    )
    goals = [_goal(title, name, sides, timed) for name in sides if name in GOALS]
    return Section(title, body, goals)


def window_section(rounds: int) -> Section:
    """Compare a window in a long text with attention to all of it, in time and memory."""
    rows, goals = [], []
    text = torch.randn(1, LONG, SIZES["d_model"])
    sides = {"all": _attention_of(None, text), MASK: _attention_of(WINDOWS[-1], text, False)}
    sides |= {str(size): _attention_of(size, text) for size in WINDOWS}
    timed = take_turns(sides, rounds, 60.0)
    for name, call in sides.items():
        own, other = timed.turns[name], timed.turns["all"]
        ratio = Spread.of([a.cpu_seconds / b.cpu_seconds for a, b in zip(own, other, strict=True)])
        cpu = Spread.of([1000 * turn.cpu_seconds for turn in own])
        peak = peak_activation_bytes(call, [])
        rows.append([name, cpu.text(0), ratio.text(2), f"{peak / 2**20:,.0f}"])
        if name not in ("all", MASK):
            title = f"window of {name} in {LONG} tokens, to all"
            goals.append(Goal(title, ratio.median, WINDOW_GOAL, "x", at_least=False))
    body = (
        f"{table(['window', 'ms', 'to all', 'peak MiB'], rows)}\n\nForward and backward of the "
        f"self-attention of an encoder, width {SIZES['d_model']}, {LONG} tokens; processor time, "
        f"medians (and extremes) of {timed.count} rounds, one thread."
    )
    return Section("A sliding window", body, goals)


def _attention_of(size: int | None, text: Tensor, in_blocks: bool = True) -> Callable[[], None]:
    """Return forward and backward of a self-attention, with the bias of its window if it has one.

    Args:
        size: window, or None.
        text: hidden states (1, T, D).
        in_blocks: whether to use blocks; else the window is a mask of all scores.
    """
    stack = _model(_config(PLAIN, {"encoder_layers": 1, "attention_window": size})).encoder
    attention, window = stack.layers[0].get_submodule("self_attention"), stack.bias
    x = text.clone().requires_grad_()

    def call() -> None:
        for leaf in (x, *attention.parameters()):
            leaf.grad = None
        context = Context()
        if isinstance(window, Window) and in_blocks:
            context = Context(local=window.blocks(x))
        elif window is not None:
            places = torch.arange(x.size(1))
            context = Context(position_bias=window(places[:, None] - places))
        attention(x, context).y.sum().backward()

    return call


def before_section(old: Path, new: Path, rounds: int) -> Section:
    """Compare training in an older checkout and in this one."""
    arguments = ["--only", "dense", "--rounds", str(rounds), str(old), str(new)]
    with tempfile.TemporaryDirectory(prefix="ds_seq_axes_") as folder:
        found = compare_trees.compare(compare_trees.parse(arguments), Path(folder))
    speeds = found[0].ratios_of_processor_time()
    body = table(compare_trees.HEADER, [each.row() for each in found])
    goal = Goal("training to the older checkout", statistics.median(speeds), BEFORE_GOAL, "x")
    return Section("Training before and after", body, [goal])


def _config(axis: str, sizes: Mapping[str, Any]) -> TransformerConfig:
    return TransformerConfig.model_validate({**SIZES, **sizes, **AXES[axis]})


def _model(config: TransformerConfig, vocab: int = VOCAB) -> Seq2SeqTransformer:
    return build_seq2seq(config, vocab, expert_parallel=1, expert_parallel_rank=0, seed=1)


def _flops(config: TransformerConfig, vocab: int) -> float:
    tokens, pairs = SENTENCES * LENGTH, SENTENCES * LENGTH**2
    counted = training_flops(config, vocab)
    assert counted is not None
    return counted.of(LengthSums(tokens, tokens, pairs, pairs, pairs))


def _peak(rounds: int) -> float:
    """Return the median speed of large matrix products in FLOP per second of processor time."""
    a, b = torch.randn(_PEAK_SIZE, _PEAK_SIZE), torch.randn(_PEAK_SIZE, _PEAK_SIZE)
    speeds = []
    for _ in range(max(rounds, 5)):
        begin = time.process_time()
        product(a, b)
        speeds.append(2 * _PEAK_SIZE**3 / (time.process_time() - begin))
    return statistics.median(speeds[1:])


def _reference(name: str) -> str:
    return UNSHARED if name == RECURRENT else PLAIN


def _ratios(name: str, timed: Rounds) -> list[float]:
    """Return processor time to that of the reference, round by round."""
    own, other = timed.turns[name], timed.turns[_reference(name)]
    return [a.cpu_seconds / b.cpu_seconds for a, b in zip(own, other, strict=True)]


def _row(name: str, side: Side, sides: Mapping[str, Side], timed: Rounds, peak: float) -> list[str]:
    seconds = [turn.cpu_seconds for turn in timed.turns[name]]
    ratios = Spread.of(_ratios(name, timed))
    flops = side.flops / sides[_reference(name)].flops
    return [
        name,
        f"{side.flops / 1e9:.2f}",
        Spread.of([1000 * each for each in seconds]).text(1),
        f"{side.flops / statistics.median(seconds) / peak:.0%}",
        ratios.text(2),
        f"{ratios.median / flops:.3f}",
    ]


def _goal(title: str, name: str, sides: Mapping[str, Side], timed: Rounds) -> Goal:
    reference = _reference(name)
    flops = sides[name].flops / sides[reference].flops
    cost = statistics.median(_ratios(name, timed)) / flops
    what = f"{title}: {name} to {reference}, per FLOP"
    return Goal(what, cost, GOALS[name], "x", at_least=False)


def main(argv: Sequence[str]) -> int:
    """Measure, print, and return 1 if a goal is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = ("layer", "update", "parts", "window", "before")
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--old", type=Path, help="an older checkout, for `before`")
    parser.add_argument("--rounds", type=int, default=25)
    add_common_arguments(parser)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    keep_freed_memory()  # as in training
    torch.manual_seed(1)
    rounds, seconds = (5, 30.0) if args.quick else (args.rounds, 240.0)
    sections = []
    if "layer" in args.only:
        sides = {name: layers_of(name) for name in AXES if name not in _NOT_ONE_LAYER}
        sections.append(axes_section("One layer", sides, rounds, seconds))
    if "update" in args.only:
        sides = {name: update_of(name) for name in AXES}
        sections.append(axes_section("An update", sides, rounds, seconds))
    if "parts" in args.only:
        sides = {name: part_of(name) for name in PARTS}
        sections.append(axes_section("Parts of layers", sides, rounds, seconds))
    if "window" in args.only:
        sections.append(window_section(rounds))
    if "before" in args.only and args.old is not None:
        tree = Path(__file__).resolve().parents[1]
        sections.append(before_section(args.old, tree, rounds))
    body = "\n\n".join(f"### {section.title}\n\n{section.body}" for section in sections)
    goals = [goal for section in sections for goal in section.goals]
    return finish("Speed of the axes of a model", body, goals, args.record)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
