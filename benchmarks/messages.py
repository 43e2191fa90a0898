"""Measure what the collectives of one update send: number, kind and size, by layout.

`measure` trains a small model on two gloo ranks; each returns its collectives of one update.
`message_sizes.py` prints the table.
"""

from __future__ import annotations

import functools
import json
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from ds_seq import activity, cli
from ds_seq import train as train_command
from ds_seq.training.update import UpdateRunner
from tests.data.toy import write_toy
from tests.distributed.harness import run_distributed

RANKS = 2
_MEASURED = 2  # number of finished updates before the one that is measured
# which argument holds all that a collective moves: the tensors of all ranks, or those of this one
_WHOLE = {
    "all_gather": 0,
    "all_gather_into_tensor": 0,
    "_all_gather_base": 0,
    "all_reduce": 0,
    "all_to_all": 1,
    "all_to_all_single": 1,
    "broadcast": 0,
    "gather": 0,
    "reduce": 0,
    "reduce_scatter": 1,
    "reduce_scatter_tensor": 1,
    "_reduce_scatter_base": 1,
}
_EXPERIMENT = """\
name: messages
run_dir: {folder}/run
data:
  source_lang: en
  target_lang: de
  dir: {folder}/data
  raw: {{train: {{source: {folder}/text/train.en, target: {folder}/text/train.de}}}}
  max_source_length: 32
  max_target_length: 32
  vocab: {{size: 250, model_type: bpe}}
model:
  {{d_model: 32, encoder_layers: 2, decoder_layers: 2, num_heads: 2, ffn_dim: 64, dropout: 0.0,
    norm_position: pre, max_positions: 64}}
optimizer: {{name: adamw, lr: 1e-3}}
scheduler: {{name: inverse_sqrt, warmup_updates: 10}}
train:
  {{max_tokens: 600, clip_norm: 1.0, max_updates: 4, log_every: 100, validate_every: null,
    save_every: 1000, tensorboard: false}}
"""
EXPERTS = (
    "criterion.name=model_and_base",
    "model.moe={num_experts: 4, top_k: 2, every: 2, capacity_factor: null}",
)
"""Experts in the second layer of the encoder and of the decoder; no token is dropped."""


class Message(NamedTuple):
    """A collective that this rank took part in.

    Attributes:
        kind: name of the function of `torch.distributed`.
        num_bytes: bytes of the whole: the reduced tensor, all parts that are gathered or scattered,
            or all rows that this rank sends in an all-to-all, those to itself included.
        group_size: number of ranks in its group.
        type: number format, such as `float32`.
    """

    kind: str
    num_bytes: int
    group_size: int
    type: str

    @property
    def sent(self) -> float:
        """Bytes that leave this rank: of a ring of all ranks, or straight to each of the others."""
        share = (self.group_size - 1) / self.group_size
        return self.num_bytes * share * (2 if self.kind == "all_reduce" else 1)


class Measured(NamedTuple):
    """What a rank saw of one update.

    Attributes:
        messages: its collectives, in order.
        source_tokens: real source tokens of its batches, end symbols included.
        target_tokens: real target tokens of its batches, end symbols included.
        dense_parameters: parameters that all ranks hold.
        expert_parameters: parameters of the experts of this rank.
    """

    messages: list[Message]
    source_tokens: int
    target_tokens: int
    dense_parameters: int
    expert_parameters: int

    def total(self, *kinds: str, at_least: int = 0) -> int:
        """Return the bytes of the messages of some kinds, without those that are smaller."""
        return sum(
            m.num_bytes for m in self.messages if m.kind in kinds and m.num_bytes >= at_least
        )


class _Recorder:
    """Notes every collective, and what the update that is measured works on."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.tokens: list[int] = []
        self.parameters: list[int] = []
        self._inside = threading.local()  # a collective made of others is one

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Record within the block; what DeepSpeed calls is seen, too."""
        originals = {name: vars(dist)[name] for name in _WHOLE if name in vars(dist)}
        run_update = UpdateRunner.__call__
        for name, original in originals.items():
            setattr(dist, name, self._recorded(name, original))

        def call(runner: UpdateRunner, update: Any, number: int, *more: Any, **named: Any) -> Any:
            if number == _MEASURED:
                self._look(runner.engine.module, update.batches)
            return run_update(runner, update, number, *more, **named)

        UpdateRunner.__call__ = call
        try:
            yield
        finally:
            UpdateRunner.__call__ = run_update
            for name, original in originals.items():
                setattr(dist, name, original)

    def _look(self, module: torch.nn.Module, batches: Sequence[Any]) -> None:
        source = sum(int(batch.inputs.source_mask.sum()) for batch in batches)
        self.tokens = [source, sum(int(batch.num_tokens) for batch in batches)]
        self.parameters = [0, 0]
        for parameter in module.parameters():
            size = getattr(parameter, "ds_numel", parameter.numel())
            self.parameters[not getattr(parameter, "allreduce", True)] += size

    def _recorded(self, kind: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def recorded(*args: Any, **named: Any) -> Any:
            is_outer = not getattr(self._inside, "flag", False)
            if is_outer and activity.CURRENT.update == _MEASURED:
                self.messages.append(_message(kind, args, named))
            self._inside.flag = True
            try:
                return original(*args, **named)
            finally:
                self._inside.flag = not is_outer

        return recorded


def _message(kind: str, args: Sequence[Any], named: dict[str, Any]) -> Message:
    values = [*args, *named.values()]
    whole = values[_WHOLE[kind]]
    tensors = whole if isinstance(whole, list) else [whole]
    group = named.get("group") or next((v for v in args if isinstance(v, dist.ProcessGroup)), None)
    num_bytes = sum(tensor.nbytes for tensor in tensors)
    number_format = str(tensors[0].dtype).removeprefix("torch.")
    return Message(kind.strip("_"), num_bytes, dist.get_world_size(group), number_format)


def make_lab(folder: Path) -> Path:
    """Write text and an experiment, and prepare its shards; return the experiment file."""
    write_toy(folder / "text", train=1000, held_out=20)
    experiment = folder / "messages.yaml"
    experiment.write_text(_EXPERIMENT.format(folder=folder), encoding="utf-8")
    assert cli.main(["prepare", str(experiment)]) == 0
    return experiment


def measure(
    experiment: Path,
    stage: int,
    *overrides: str,
    ranks: int = RANKS,
    zero: Mapping[str, Any] | None = None,
) -> list[Measured]:
    """Return what one update of a training sends, as seen by each of several gloo ranks.

    Args:
        experiment: file that `make_lab` has returned.
        stage: stage of ZeRO.
        overrides: further settings, such as `EXPERTS`.
        ranks: number of processes.
        zero: further keys of `zero_optimization`.
    """
    recorder = _Recorder()
    with words_of(experiment, stage, overrides, zero) as words, recorder.installed():
        found: list[Measured] = run_distributed(_train, ranks, recorder, words, timeout=120)
    return found


@contextmanager
def words_of(
    experiment: Path, stage: int, overrides: Sequence[str], zero: Mapping[str, Any] | None = None
) -> Iterator[list[str]]:
    """Yield the arguments of `ds-seq train`; the run folder is gone after the block."""
    with tempfile.TemporaryDirectory() as name:
        json_file = Path(name) / "zero.json"
        settings = {"zero_optimization": {"stage": stage, **(zero or {})}}
        json_file.write_text(json.dumps(settings), encoding="utf-8")
        more = [f"run_dir={name}/run", f"train.deepspeed={json_file}", *overrides]
        yield [str(experiment), *more]


def _train(recorder: _Recorder, words: list[str]) -> Measured:
    assert train_command.main(words) == 0
    return Measured(recorder.messages, *recorder.tokens, *recorder.parameters)
