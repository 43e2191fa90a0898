"""gpu.py: training steps of Transformer-big, dense and with experts, in several variants."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ds_seq import distributed
from ds_seq.config.deepspeed import engine_config
from ds_seq.config.model import MoeConfig, TransformerConfig
from ds_seq.config.optim import AdamConfig
from ds_seq.config.train import TrainConfig
from ds_seq.criterions.cross_entropy import CrossEntropy
from ds_seq.criterions.model_and_base import ModelAndBase
from ds_seq.data.batch import Batch, Seq2SeqInputs
from ds_seq.models.build import build_seq2seq
from ds_seq.names import ROUTER_LOSSES, Precision
from ds_seq.optim import build_optimizer
from ds_seq.optim.param_groups import parameter_groups
from ds_seq.reports.metrics import LossSums

from .bench import DTYPES, Bench, Figures, Sizes, device_name, peak_of
from .measure import clear, count_waits, out_of_memory, peak_gb, profile, sync, wall_ms
from .text import make_batches, step_flops

SMOOTHING = 0.1
_LR = 1e-4
_SECONDS = 25.0  # time for the timed steps at one size
_BUCKETS = {"reduce_bucket_size": 200_000_000, "allgather_bucket_size": 200_000_000}
_ADAM = AdamConfig(lr=_LR, betas=(0.9, 0.98))


@dataclass(frozen=True)
class Variant:
    """A way to train.

    Attributes:
        precision: precision of the model.
        experts: number of experts in every second layer; 0 for a dense model.
        engine: `zero0` and `zero1` are DeepSpeed's stages, set as ds_seq sets them for one
            rank; `zero1_checked` lets DeepSpeed overlap communication and check every gradient
            as it does by default; `plain` is torch alone, without fp32 masters.
        cudnn: whether to allow cuDNN's attention, which ds_seq turns off.
        all_sizes: whether to train at all sizes or only at the middle one.
        detail: whether to profile a step and count its waits.
    """

    precision: Precision = "bf16"
    experts: int = 0
    engine: Literal["zero0", "zero1", "zero1_checked", "plain"] = "zero1"
    cudnn: bool = False
    all_sizes: bool = True
    detail: bool = True


@dataclass(frozen=True)
class Training:
    """A model and its training step."""

    model: nn.Module
    step: Callable[[Batch[Seq2SeqInputs]], None]
    sums: LossSums


def model_config(sizes: Sizes, experts: int = 0) -> TransformerConfig:
    """Return the pre-norm Transformer of these sizes, with top-1 experts in every second layer."""
    moe = MoeConfig(num_experts=experts) if experts else None
    fields: dict[str, Any] = {**sizes.model, "dropout": 0.1, "norm_position": "pre", "moe": moe}
    return TransformerConfig(**fields)


def criterion() -> ModelAndBase:
    """Return label-smoothed cross entropy, plus the router losses if there are experts."""
    weights = {"load_balance": 0.01, "router_z": 0.001}
    return ModelAndBase(CrossEntropy(SMOOTHING, "fairseq"), weights, ROUTER_LOSSES)


def plain_training(model: nn.Module) -> Training:
    """Train with torch alone; the model is on its device and in its precision."""
    model.train()
    loss_of, sums = criterion(), LossSums()
    optimizer = build_optimizer(_ADAM, parameter_groups(model, _LR))

    def step(batch: Batch[Seq2SeqInputs]) -> None:
        output = model(batch.inputs)
        loss = loss_of(output, batch)
        (loss.total / batch.num_tokens).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        sums.add({**loss.parts, "loss": loss.total.detach()}, output.moe_stats, batch)

    return Training(model, step, sums)


def engine_training(model: nn.Module, variant: Variant, figures: Figures) -> Training:
    """Train with DeepSpeed's engine, and add its settings to the figures."""
    distributed.init(distributed.discover(os.environ))
    distributed.quiet_deepspeed()
    from ds_seq.training.engine import Engine  # imports DeepSpeed, which `init` silences

    train = TrainConfig(precision=variant.precision, clip_norm=1.0)
    settings = engine_config(
        train, deepspeed_json(variant), moe=bool(variant.experts), world_size=1
    )
    if variant.engine == "zero1_checked":
        settings["zero_optimization"]["overlap_comm"] = True
    zero = settings.get("zero_optimization", {})
    figures["overlap_comm"] = zero.get("overlap_comm")
    figures["check_grad_overflow"] = settings["bf16"].get("check_grad_overflow")
    engine = Engine(
        model,
        lambda groups: build_optimizer(_ADAM, groups),
        parameter_groups(model, _LR),
        lambda update: _LR,
        settings,
        expert_parallel=1,
        sparse_clip=False,
    )
    loss_of, sums = criterion(), LossSums()
    engine.module.train()

    def step(batch: Batch[Seq2SeqInputs]) -> None:
        output = engine(batch)
        loss = loss_of(output, batch)
        engine.backward(loss.total * (1.0 / batch.num_tokens))
        engine.step()
        sums.add({**loss.parts, "loss": loss.total.detach()}, output.moe_stats, batch)

    return Training(engine.module, step, sums)


def deepspeed_json(variant: Variant) -> dict[str, Any]:
    """Return DeepSpeed settings such as those in configs/ds_config."""
    stage = 0 if variant.engine == "zero0" else 1
    zero: dict[str, Any] = {"stage": stage}
    if stage == 1:
        zero |= {**_BUCKETS, "overlap_comm": True}
    settings: dict[str, Any] = {"zero_optimization": zero, "fp16": {"initial_scale_power": 12}}
    if variant.engine == "zero1_checked" and variant.precision == "bf16":
        settings["bf16"] = {"check_grad_overflow": True}
    return settings


def train(bench: Bench, variant: Variant) -> None:
    """Time steps at each size; at the middle size report kernels and waits too."""
    figures, sizes = bench.figures, bench.sizes
    figures.update(precision=variant.precision, experts=variant.experts, engine=variant.engine)
    begun = time.monotonic()
    training = start_training(bench, variant)
    figures["cudnn"] = torch.backends.cuda.cudnn_sdp_enabled()
    figures["parameters"] = sum(p.numel() for p in training.model.parameters())
    sync()
    figures["build_s"] = round(time.monotonic() - begun, 1)
    figures["rows"] = []
    for count in sizes.tokens if variant.all_sizes else (sizes.middle,):
        try:
            row = time_training(bench, training, count, variant.precision)
        except Exception as problem:
            if not out_of_memory(problem):
                raise
            row = {"max_tokens": count, "out_of_memory": True}
            clear()
        figures["rows"].append(row)
        print(json.dumps(row), flush=True)
    if variant.detail:
        batch = make_batches(sizes, sizes.middle, 1, bench.device)[0].batch
        training.step(batch)
        figures["waits_per_step"] = count_waits(lambda: training.step(batch))
        figures["profile"] = profile(lambda: training.step(batch))


def start_training(bench: Bench, variant: Variant) -> Training:
    """Build the model and its training step."""
    if variant.engine == "plain":
        torch.backends.cuda.enable_cudnn_sdp(False)
        model = build_seq2seq(
            model_config(bench.sizes, variant.experts), bench.sizes.vocab, 1, 0, seed=1
        )
        training = plain_training(model.to(bench.device, DTYPES[variant.precision]))
    else:
        model = build_seq2seq(
            model_config(bench.sizes, variant.experts), bench.sizes.vocab, 1, 0, seed=1
        )
        training = engine_training(model, variant, bench.figures)
    if variant.cudnn:
        torch.backends.cuda.enable_cudnn_sdp(True)
    return training


def time_training(
    bench: Bench, training: Training, max_tokens: int, precision: str
) -> dict[str, Any]:
    """Time passes over batches, after one with new shapes and one to warm up."""
    sizes = bench.sizes
    texts = make_batches(sizes, max_tokens, sizes.shapes, bench.device)
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    begun = time.monotonic()
    first = [round(wall_ms(lambda text=text: training.step(text.batch)), 1) for text in texts]
    for text in texts:
        training.step(text.batch)
    sync()
    done, start = 0, time.perf_counter()
    for _ in range(max(sizes.steps // len(texts), 1)):
        for text in texts:
            training.step(text.batch)
        done += len(texts)
        if time.monotonic() - begun > _SECONDS:
            break
    queued = (time.perf_counter() - start) / done
    sync()
    seconds = (time.perf_counter() - start) / done
    tokens = sum(text.batch.num_tokens for text in texts) / len(texts)
    both_sides = sum(int(text.source.sum() + text.target.sum()) for text in texts) / len(texts)
    memory = torch.cuda.memory_stats() if bench.device.type == "cuda" else {}
    return {
        "max_tokens": max_tokens,
        "shapes": [[*t.batch.inputs.source.shape, t.batch.inputs.target.shape[1]] for t in texts],
        "ms_per_step": round(1e3 * seconds, 2),
        "host_ms_per_step": round(1e3 * queued, 2),
        "first_ms": first,
        "target_tokens_per_s": round(tokens / seconds),
        "tokens_per_s_both_sides": round(both_sides / seconds),
        **_utilization(bench, texts, seconds, precision),
        "peak_gb": round(peak_gb(), 2),
        "alloc_retries": memory.get("num_alloc_retries", 0),
        "loss": round(float(training.sums.reduce()["loss"]), 3),  # type: ignore[arg-type]
    }


def _utilization(bench: Bench, texts: Any, seconds: float, precision: str) -> dict[str, Any]:
    """Return shares of the data sheet's FLOP/s, without and with padding."""
    work, padded = (
        sum(step_flops(bench.sizes, text, padding) for text in texts) / len(texts)
        for padding in (False, True)
    )
    found: dict[str, Any] = {"tflop_per_step": round(work / 1e12, 3)}
    peak = peak_of(device_name(bench.device))
    if peak is not None:
        most = peak.flops(precision) * seconds
        found |= {"mfu": round(work / most, 4), "hfu_padded": round(padded / most, 4)}
    return found


def train_many_experts(bench: Bench) -> None:
    """Train with 64 experts: 3.3 billion parameters, 80 GB with masters and moments.

    If they do not fit, use plain AdamW on bf16 weights.
    """
    experts = bench.sizes.experts[1]
    try:
        train(bench, Variant(experts=experts, all_sizes=False))
        if "out_of_memory" not in bench.figures["rows"][0]:
            return
    except Exception as problem:
        if not out_of_memory(problem):
            raise
    bench.figures.clear()
    clear()
    train(bench, Variant(experts=experts, engine="plain", all_sizes=False))
    bench.figures["note"] = "zero1 ran out of memory"


def train_compiled(bench: Bench) -> None:
    """Train with torch.compile of single layers, with dynamic shapes and without DeepSpeed."""
    figures, sizes = bench.figures, bench.sizes
    training = start_training(bench, Variant(engine="plain"))
    figures["eager"] = time_training(bench, training, sizes.middle, "bf16")
    torch._dynamo.config.cache_size_limit = 64
    for stack in (training.model.encoder, training.model.decoder):
        for layer in stack.layers:  # type: ignore[union-attr]
            layer.compile(dynamic=True)
    begun = time.monotonic()
    batch = make_batches(sizes, sizes.middle, 1, bench.device)[0].batch
    training.step(batch)
    sync()
    figures["compile_s"] = round(time.monotonic() - begun, 1)
    figures["compiled"] = time_training(bench, training, sizes.middle, "bf16")
    figures["profile"] = profile(lambda: training.step(batch))
