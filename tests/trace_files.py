"""Which files does a reader open who follows one sentence pair from the shards to its loss?

    python tests/trace_files.py            # a dense model with cross entropy, and one with experts
    python tests/trace_files.py dense      # one of them: dense, experts

Runs one update of ``ds-seq train`` on toy text and lists the files of ds_seq that had a function
executed on the way: from the moment training starts (``Trainer.fit``) until DeepSpeed gets the loss
for its backward pass, background threads included, module level and imports excluded. The
composition root and the files of ``tasks/`` count too, because the reader comes through them. How
processes talk, what is logged, and what watches over the run (`NOT_OF_THE_PAIR`) do not count,
because no token passes through them.

It follows the program and no particular function, so that it goes on working while files move: all
that it takes for granted are the command, a method ``fit``, and ``DeepSpeedEngine.backward``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(REPOSITORY)

from tests.data.toy import write_toy  # noqa: E402 - the repository comes first

_EXPERIMENT = """\
name: traced
run_dir: {folder}/run
data:
  source_lang: en
  target_lang: de
  dir: {folder}/data
  raw: {{train: {{source: {folder}/train.en, target: {folder}/train.de}}}}
  max_source_length: 32
  max_target_length: 32
  vocab: {{size: 200, model_type: bpe}}
model:
  {{d_model: 16, encoder_layers: 2, decoder_layers: 2, num_heads: 2, ffn_dim: 32,
    max_positions: 32{moe}}}
criterion: {criterion}
optimizer: {{name: adamw, lr: 1e-3}}
scheduler: {{name: inverse_sqrt, warmup_updates: 10}}
train:
  {{max_tokens: 500, max_updates: 1, validate_every: null, save_every: 10, tensorboard: false}}
"""
KINDS = {
    "dense": {"moe": "", "criterion": "{name: cross_entropy}"},
    "experts": {
        "moe": ", moe: {num_experts: 4, top_k: 2, every: 2}",
        "criterion": "{name: model_and_base, loss_weights: {load_balance: 0.01, router_z: 0.001}}",
    },
}
NOT_OF_THE_PAIR = (
    "distributed",
    "launcher",
    "reports/metrics.py",
    "reports/",
    "training/divergence.py",
    "training/progress.py",
    "training/returns.py",
    "training/timing.py",
)
_FUNCTION = 0x0001 | 0x0002  # optimized, with separate locals: not a module, not a class body


class Tracer:
    """Collects the files of ``package`` whose functions run.

    Args:
        package: folder of the package.
        entry: name of the method with which the path begins.
    """

    def __init__(self, package: Path, entry: str = "fit") -> None:
        self._prefix = f"{package}{os.sep}"
        self._entry = entry
        self._on_the_way = False
        self._ended = False
        self._files: set[str] = set()
        self._tasks: set[str] = set()
        self._ours: dict[CodeType, str | None] = {}

    def files(self) -> list[str]:
        """What has been collected, relative to the package."""
        all_of_them = self._files | self._tasks
        return sorted(name for name in all_of_them if not name.startswith(NOT_OF_THE_PAIR))

    def start(self) -> None:
        """Watch this thread and those that it starts."""
        threading.setprofile(self._event)
        sys.setprofile(self._event)

    def end(self) -> None:
        """The loss is there."""
        assert self._on_the_way, f"a loss, but no {self._entry}() before it"
        self._ended = True
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]

    def _event(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or self._ended:
            return
        name = self._file(frame.f_code)
        if name is None:
            return
        if not self._on_the_way and frame.f_code.co_name == self._entry:
            self._on_the_way = True
            caller: FrameType | None = frame
            while caller is not None:  # who has put all this together
                if (above := self._file(caller.f_code)) is not None:
                    self._files.add(above)
                caller = caller.f_back
        if self._is_import(frame):
            return
        if self._on_the_way:
            self._files.add(name)
        elif name.startswith("tasks/"):
            self._tasks.add(name)

    def _file(self, code: CodeType) -> str | None:
        """The file of a function of the package."""
        if code not in self._ours:
            inside = code.co_filename.startswith(self._prefix)
            function = code.co_flags & _FUNCTION == _FUNCTION
            relative = code.co_filename.removeprefix(self._prefix)
            self._ours[code] = relative if inside and function else None
        return self._ours[code]

    def _is_import(self, frame: FrameType) -> bool:
        """Whether the function runs because a module of the package is being imported."""
        above: FrameType | None = frame
        while above is not None:
            code = above.f_code
            if code.co_name == "<module>" and code.co_filename.startswith(self._prefix):
                return True
            above = above.f_back
        return False


def trace(kind: str, folder: Path) -> list[str]:
    """Train for one update in this process, which must not have trained before.

    Args:
        kind: of `KINDS`.
        folder: an empty folder to work in.

    Returns:
        The files, relative to the package.
    """
    write_toy(folder, train=200, held_out=1)
    experiment = folder / "traced.yaml"
    experiment.write_text(_EXPERIMENT.format(folder=folder, **KINDS[kind]), encoding="utf-8")
    import ds_seq
    from ds_seq import cli

    assert cli.main(["prepare", str(experiment)]) == 0
    from ds_seq.config.load import load_experiment
    from ds_seq.training.run import run_training  # imports DeepSpeed with ds_seq's settings

    engine_class: Any = sys.modules["deepspeed.runtime.engine"].DeepSpeedEngine
    tracer = Tracer(Path(ds_seq.__file__).resolve().parent)
    backward = engine_class.backward

    def traced_backward(*args: Any, **kwargs: Any) -> Any:
        tracer.end()
        return backward(*args, **kwargs)

    engine_class.backward = traced_backward
    try:
        tracer.start()
        assert run_training(lambda: load_experiment(experiment)).update > 0
    finally:
        sys.setprofile(None)
        engine_class.backward = backward
    return tracer.files()


def table(kind: str, files: Sequence[str], package: Path) -> str:
    """The files and their lines, for people to read."""
    lines = {name: len((package / name).read_text(encoding="utf-8").splitlines()) for name in files}
    rows = [f"  {count:5,}  {name}" for name, count in lines.items()]
    return "\n".join([f"{kind}: {len(files)} files, {sum(lines.values()):,} lines", *rows])


def _print_one(kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = trace(kind, Path(folder))
    import ds_seq

    print(table(kind, files, Path(ds_seq.__file__).resolve().parent), flush=True)


def main(kinds: Sequence[str]) -> int:
    """Each kind in a separate process, so that DeepSpeed is started once in each."""
    if strange := set(kinds) - set(KINDS):
        print(f"{', '.join(sorted(strange))}: choose from {', '.join(KINDS)}", file=sys.stderr)
        return 2
    if len(kinds) == 1:
        _print_one(kinds[0])
        return 0
    environ = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    codes = [
        subprocess.run(
            [sys.executable, __file__, kind], env={**os.environ, **environ}, check=False
        ).returncode
        for kind in kinds or KINDS
    ]
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
