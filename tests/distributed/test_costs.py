"""Estimates of `ds-seq check`, compared with real runs: memory of a rank, bytes of collectives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch.utils._pytree import tree_leaves

from ds_seq import distributed
from ds_seq.config.cost.batch import BatchShape
from ds_seq.config.cost.kinds import is_costed
from ds_seq.config.cost.memory import memory
from ds_seq.config.cost.states import Buffers, Layout, parameters
from ds_seq.config.cost.traffic import traffic
from ds_seq.config.deepspeed import engine_config
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.optim import AdamConfig
from ds_seq.data.batch import Batch
from ds_seq.models import build_model
from ds_seq.moe.engine import connect_expert_parallel
from ds_seq.optim import build_optimizer
from ds_seq.optim.param_groups import parameter_groups
from ds_seq.training.engine import Engine
from tests.batches import batch_of, text_batch_of
from tests.distributed import spine
from tests.distributed.harness import run_distributed
from tests.tensor_memory import TensorMemory

VOCAB, BUCKET, UPDATES = 1000, 200_000, 2
BATCH = BatchShape(24, 24)
SIZES = {"d_model": 128, "ffn_dim": 384, "num_heads": 4, "encoder_layers": 2, "decoder_layers": 2}
MOE = {"moe": {"num_experts": 4, "top_k": 2, "capacity_factor": None}}
REPEATED = {"encoder_layers": 1, "encoder_repeats": 3, "activation": "swiglu", "num_kv_heads": 2}

LSTM = {
    "name": "recurrent",
    **dict.fromkeys(("encoder_embedding_dim", "decoder_embedding_dim", "output_dim"), 128),
    **dict.fromkeys(("encoder_hidden_dim", "decoder_hidden_dim"), 160),
    "decoder_layers": 2,
}
LSTM_LM = {
    "name": "recurrent_lm",
    **dict.fromkeys(("decoder_embedding_dim", "output_dim"), 128),
    "decoder_hidden_dim": 160,
    "decoder_layers": 2,
}
GATED = {
    "name": "convolutional",
    "embedding_dim": 128,
    "output_dim": 96,
    "encoder_convolutions": [[128, 3]] * 2,
    "decoder_convolutions": [[128, 3], [160, 2]],
}
GATED_LM = {
    "name": "convolutional_lm",
    "embedding_dim": 128,
    "decoder_convolutions": [[128, 4], [64, 1, 0], [128, 3, 2]],
}
OTHERS: tuple[dict[str, Any], ...] = (
    LSTM,
    {**LSTM, "input_feeding": False},
    LSTM_LM,
    GATED,
    {**GATED, "weight_norm": False},
    GATED_LM,
)


class Case(NamedTuple):
    """A run of two ranks."""

    stage: int
    expert_parallel: int = 1
    precision: str = "fp32"
    accumulate: int = 1
    fields: dict[str, Any] = {}  # noqa: RUF012

    @property
    def config(self) -> ExperimentConfig:
        """The experiment."""
        train = {
            "precision": self.precision,
            "accumulate": self.accumulate,
            "expert_parallel": self.expert_parallel,
            "clip_norm": 1.0,
        }
        languages = {"source_lang": "en", "target_lang": "de"}
        task = {"name": "translation"}
        if self.reads_text:
            languages, task = {"language": "de"}, {"name": "language_modeling"}
        return ExperimentConfig.model_validate(
            {
                "name": "costs",
                "data": {**languages, "dir": "d", "vocab": {"size": VOCAB}},
                "task": task,
                "validation": {"metrics": [], "best": "loss"},
                "model": self.fields if "name" in self.fields else {**SIZES, **self.fields},
                "train": train,
            }
        )

    @property
    def reads_text(self) -> bool:
        """Whether the model is a language model."""
        return self.fields.get("name") in ("recurrent_lm", "convolutional_lm")


class Measured(NamedTuple):
    """What an update of a rank took."""

    peak: int
    sizes: Mapping[str, float]
    """Bytes by kind of collective; those of small exchanges are left out."""


_SMALL = 100
_READ = {
    "allreduce_": ("all_reduce", 0),
    "_reduce_scatter_base_": ("reduce_scatter", 1),
    "reduce_scatter_": ("reduce_scatter", 1),
    "_allgather_base_": ("all_gather", 0),
    "allgather_": ("all_gather", 0),
    "alltoall_base_": ("all_to_all", 1),
}
"""Operation of torch -> kind of collective, and which argument has its bytes."""


class Costs(TensorMemory):
    """Memory, and the bytes that collectives are called with."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func._schema.name.removeprefix("c10d::")
            groups = [dist.ProcessGroup.unbox(each) for each in args if _is_group(each)]
            if name in _READ and groups[0].size() > 1:
                kind, place = _READ[name]
                size = sum(tensor.nbytes for tensor in tree_leaves(args[place]))
                self.sizes[kind] += size if size > _SMALL else 0
        return super().__torch_dispatch__(func, types, args, kwargs)


def _is_group(value: Any) -> bool:
    return isinstance(value, torch.ScriptObject) and "ProcessGroup" in str(value._type())


def _measure(case: Case) -> Measured:
    """Train a few updates, and return what the last one takes."""
    config, ranks = case.config, distributed.world_size()
    model = config.model
    assert is_costed(model)
    zero = {"stage": case.stage, **({"reduce_bucket_size": BUCKET} if case.stage else {})}
    optimizer = AdamConfig(lr=1e-3)
    criterion = spine.make_criterion()
    with Costs() as found:
        net = build_model(model, VOCAB, case.expert_parallel, distributed.rank(), seed=5)
        connect_expert_parallel(net, case.expert_parallel)
        engine = Engine(
            net,
            lambda groups: build_optimizer(optimizer, groups),
            parameter_groups(net, 0.01),
            lambda update: optimizer.lr,
            engine_config(
                config.train,
                {"zero_optimization": zero},
                moe=model.moe is not None,
                world_size=ranks,
            ),
            expert_parallel=case.expert_parallel,
            sparse_clip=False,
        )
        engine.module.train()
        for _ in range(UPDATES):
            found.restart()
            found.sizes.clear()
            for _ in range(case.accumulate):
                shape = (BATCH.sentences, BATCH.length)
                batch: Batch = batch_of(*(torch.randint(4, VOCAB, shape) for _ in range(2)))
                batch = text_batch_of(batch) if case.reads_text else batch
                output = engine(batch)
                loss = criterion(output, batch)
                engine.backward(loss.total * (ranks * case.accumulate / BATCH.tokens / 4))
                del output, loss
                engine.step()
    return Measured(found.peak, dict(found.sizes))


def mean(first: Measured, second: Measured) -> Measured:
    """The first rank's memory; of exchanges the mean, as one rank gets more rows than another."""
    return Measured(
        first.peak, {name: (size + second.sizes[name]) / 2 for name, size in first.sizes.items()}
    )


def measure_all(cases: list[Case]) -> list[Measured]:
    """Measure cases one after the other; runs on every rank."""
    return [_measure(case) for case in cases]


CHEAP = [Case(1), Case(3, 2, fields=MOE)]
CASES = [
    *(Case(stage, accumulate=count) for stage in range(4) for count in (1, 2)),
    *(Case(stage, 1, "bf16", count) for stage in range(4) for count in (1, 2)),
    *(Case(stage, 2, fields=MOE) for stage in range(4)),
    *(Case(stage, 1, fields=MOE) for stage in (1, 3)),
    *(Case(stage, 2, "bf16", 2, fields=MOE) for stage in (1, 2, 3)),
    *(Case(stage, fields=REPEATED) for stage in (0, 2)),
    *(Case(s, 2, fields={**MOE, "activation_checkpointing": True}) for s in (0, 1, 3)),
]
CASES += [Case(stage, fields=fields) for stage in (0, 1, 3) for fields in OTHERS]


def estimated(case: Case) -> tuple[float, Counter[str]]:
    """The estimates of the largest memory, and of bytes by kind of collective."""
    config, layout, buffers = case.config, Layout(2, case.expert_parallel, case.stage), BUFFERS
    model = config.model
    assert is_costed(model)
    found = memory(config, model, layout, buffers, BATCH, "cpu")
    counts = parameters(config, model, model.num_params(VOCAB), layout, buffers.persistent)
    sizes = Counter[str]()
    for each in traffic(config, model, counts, layout, BATCH, buffers.live):
        sizes[each.name] += each.size  # type: ignore[assignment]
    return found.peak, sizes


def check(case: Case, measured: Measured) -> list[str]:
    """Return a line for each estimate that is wrong."""
    peak, sizes = estimated(case)
    lines = []
    if abs(peak - measured.peak) > 0.1 * measured.peak:
        lines.append(f"{case}: peak {peak:,.0f}, measured {measured.peak:,}")
    for name in sizes.keys() | measured.sizes.keys():
        expected, real = sizes[name], measured.sizes.get(name, 0)
        if abs(expected - real) > 0.002 * max(expected, real) + 1000:
            lines.append(f"{case}: {name} {expected:,.0f}, measured {real:,.0f}")
    return lines


BUFFERS = Buffers(bucket=BUCKET)


@pytest.mark.parametrize(
    "cases",
    [CHEAP, *(pytest.param([case], marks=pytest.mark.slow) for case in CASES)],
    ids=str,
)
def test_memory_and_collectives_are_those_of_a_real_run(cases: list[Case]) -> None:
    first, second = run_distributed(measure_all, 2, cases, timeout=120.0)
    measured = [mean(*pair) for pair in zip(first, second, strict=True)]
    wrong = [line for pair in zip(cases, measured, strict=True) for line in check(*pair)]
    assert not wrong, "\n".join(wrong)
