"""The trials of `survival.py`: each returns what it has found, or None when there are no more."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from benchmarks import survival_stall
from benchmarks.survival_ranks import Ranks, peak_memory
from ds_seq import cli
from tests.data.toy import write_toy

Row = dict[str, Any]
UPDATES, EVERY = 24, 2  # of a run; between its checkpoints
LIMIT = 150.0  # seconds that a run may take on a machine that does other work as well
LAYOUTS = ((2, 2, 1), (2, 1, 0), (2, 1, 2), (2, 2, 3), (1, 1, 0), (1, 1, 2))
"""World size, expert parallel, stage of ZeRO."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)

_EXPERIMENT = """\
name: survival
run_dir: {folder}/unused
data:
  source_lang: en
  target_lang: de
  dir: {folder}/data
  raw:
    train: {{source: {folder}/text/train.en, target: {folder}/text/train.de}}
    valid: {{source: {folder}/text/valid.en, target: {folder}/text/valid.de}}
  max_source_length: 32
  max_target_length: 32
  vocab: {{size: 250, model_type: bpe}}
model:
  {{d_model: 32, encoder_layers: 1, decoder_layers: 1, num_heads: 2, ffn_dim: 64, dropout: 0.0,
    norm_position: pre, max_positions: 64,
    moe: {{num_experts: 4, top_k: 2, placement: both, every: 1, capacity_factor: null}}}}
criterion: {{name: model_and_base, loss_weights: {{router_z: 0.001}}}}
optimizer: {{name: adamw, lr: 2e-3, betas: [0.9, 0.98]}}
scheduler: {{name: inverse_sqrt, warmup_updates: 10}}
train:
  {{max_tokens: 600, batches_per_update: 2, clip_norm: 1.0, max_updates: {updates}, log_every: 1,
    validate_every: null, save_every: {every}, keep_last: 3, tensorboard: false}}
"""


class Bench:
    """Data, one uninterrupted run in each layout, and folders for the others.

    Args:
        folder: of everything.
        trials: kills, and signals.
    """

    def __init__(self, folder: Path, trials: int) -> None:
        self.folder, self.trials = folder, trials
        self.experiment = folder / "survival.yaml"
        folder.mkdir(parents=True, exist_ok=True)
        if not self.experiment.exists():
            write_toy(folder / "text", train=1000, held_out=20)
            text = _EXPERIMENT.format(folder=folder, updates=UPDATES, every=EVERY)
            (folder / "new.yaml").write_text(text, encoding="utf-8")
            assert cli.main(["prepare", str(folder / "new.yaml")]) == 0
            for stage in range(4):
                path = folder / f"zero{stage}.json"
                path.write_text(f'{{"zero_optimization": {{"stage": {stage}}}}}', encoding="utf-8")
            os.replace(folder / "new.yaml", self.experiment)

    def train(self, run: Path, layout: Sequence[int], *more: str) -> Ranks:
        """Start a training in a layout; it resumes if there is something."""
        world, expert_parallel, stage = layout
        words = [
            str(self.experiment),
            f"run_dir={run}",
            f"train.expert_parallel={expert_parallel}",
            f"train.deepspeed={self.folder}/zero{stage}.json",
            "--allow-change",
            "train.deepspeed",
            "--resume",
            *more,
        ]
        return Ranks(words, world, run.with_name(run.name + ".log"))

    def whole(self, layout: Sequence[int]) -> Path:
        """Return the folder of an uninterrupted run in a layout."""
        run = self.folder / ("whole_" + "_".join(map(str, layout)))
        if _last_update(run) != UPDATES:
            shutil.rmtree(run, ignore_errors=True)
            outcome = self.train(run, layout).wait(LIMIT)
            assert outcome.codes == [0] * layout[0], outcome.text
        return run

    def fresh(self, name: str) -> Path:
        """Return a folder for a run, without what an earlier attempt has left."""
        run = self.folder / name
        shutil.rmtree(run, ignore_errors=True)
        return run


def kill(bench: Bench, trial: int) -> Row | None:
    """Kill a run at a random moment, or in a save; resume it to the end and compare its weights."""
    if trial >= bench.trials:
        return None
    draw, layout = random.Random(trial), LAYOUTS[0]
    aims_at_save, one_rank = trial % 2 == 0, trial % 4 in (1, 2)
    in_background = trial % 8 >= 4
    expected = tensors(bench.whole(layout))
    option = f"train.background_save={str(in_background).lower()}"
    run, seconds_of_run = bench.fresh("killed"), _usual_seconds(bench, layout)
    ranks = bench.train(run, layout, option)
    if aims_at_save:
        wanted = f"update_{EVERY * draw.randint(1, UPDATES // EVERY):08d}.incomplete"
        ranks.wait_until((run / "checkpoints" / wanted).exists, LIMIT)
        time.sleep(draw.random() * 0.02)
    else:
        time.sleep(draw.random() * seconds_of_run)
    ranks.kill([draw.randrange(2)] if one_rank else [0, 1])
    was_in_save = any(run.glob("checkpoints/*.incomplete"))
    ranks.end()
    begin, before = time.time(), _last_update(run)
    again = bench.train(run, layout, option)
    again.wait_until(lambda: _logged_after(run, begin), LIMIT)
    seconds = time.time() - begin
    outcome = again.wait(LIMIT)
    same = outcome.codes == [0, 0] and difference(expected, tensors(run)) == 0.0
    return {
        "in_save": was_in_save,
        "one_rank": one_rank,
        "background": in_background,
        "checkpoint": before,
        "seconds_to_update": seconds,
        "exact": same,
        "note": "" if same else outcome.text[-600:],
    }


def layouts(bench: Bench, trial: int) -> Row | None:
    """Kill a run in one layout, resume it in another, and compare with the first, uninterrupted.

    Also compares the uninterrupted runs in both layouts: rounding alone makes them differ.
    """
    ways = [(a, b) for a in LAYOUTS for b in LAYOUTS if a != b]
    if trial >= len(ways):
        return None
    written, read = ways[trial]
    expected = tensors(bench.whole(written))
    run = bench.fresh("layouts")
    ranks = bench.train(run, written)
    ranks.wait_until(lambda: _last_update(run) >= UPDATES // 2, LIMIT)
    ranks.kill(range(written[0]))
    ranks.end()
    outcome = bench.train(run, read).wait(LIMIT)
    row: Row = {"written": written, "read": read, "difference": None, "note": outcome.text[-600:]}
    if outcome.codes == [0] * read[0]:
        losses = [_last_loss(each) for each in (bench.whole(written), run)]
        row["difference"], row["note"] = difference(expected, tensors(run)), ""
        row["loss_difference"] = abs(losses[0] - losses[1]) / losses[0]
        row["without_kill"] = difference(expected, tensors(bench.whole(read)))
    return row


def send_signal(bench: Bench, trial: int) -> Row | None:
    """Send a signal at a random moment of the training to one rank, or to all of them."""
    if trial >= bench.trials:
        return None
    draw, number = random.Random(trial), SIGNALS[trial % 4]
    run = bench.fresh("signals")
    in_background = f"train.background_save={str(trial % 8 >= 4).lower()}"
    ranks = bench.train(run, LAYOUTS[0], in_background, "train.max_updates=100000")
    ranks.wait_until(lambda: _logged_after(run, 0), LIMIT)
    time.sleep(draw.random())
    targets, begin = ([0, 1] if trial % 3 == 0 else [draw.randrange(2)]), time.monotonic()
    ranks.send(targets, number)
    outcome = ranks.wait(LIMIT)
    seconds, last = time.monotonic() - begin, _last_update(run)
    is_whole = last > 0 and last == _last_logged(run) and not any(run.glob("*/*.incomplete"))
    return {
        "signal": number.name,
        "targets": len(targets),
        "seconds": seconds,
        "codes": outcome.codes,
        "saved": is_whole,
        "note": outcome.text[-600:] if outcome.codes != [0, 0] or not is_whole else "",
    }


def damage(bench: Bench, trial: int) -> Row | None:
    """Damage a file of the newest checkpoint in one way, and resume."""
    whole = bench.whole(LAYOUTS[0])
    names = [*sorted(path.name for path in newest(whole).iterdir()), "index.json"]
    ways = [(name, how) for name in names for how in DAMAGES]
    if trial >= len(ways):
        return None
    name, how = ways[trial]
    run = bench.fresh("damaged")
    shutil.copytree(whole, run)
    path = (run / "checkpoints" if name == "index.json" else newest(run)) / name
    DAMAGES[how](path, random.Random(trial))
    outcome = bench.train(run, LAYOUTS[0]).wait(LIMIT)
    lines = [line for line in outcome.text.splitlines() if "warning" in line]
    exact = outcome.codes == [0, 0] and difference(tensors(whole), tensors(run)) == 0.0
    is_named = any(name in line or newest(whole).name in line for line in lines)
    return {
        "file": name,
        "damage": how,
        "codes": outcome.codes,
        "named": is_named,
        "exact": exact,
        "answer": lines[0].replace(str(bench.folder), "")[:200] if lines else "",
    }


def memory(bench: Bench, trial: int) -> Row | None:
    """Compare the peak memory of a run that resumes with that of one that does not."""
    if trial >= 3:
        return None
    size = ("model.d_model=256", "model.ffn_dim=2048", "train.save_every=4")
    run, peaks = bench.fresh("memory"), []
    for until in (4, 8):
        outcome = bench.train(run, LAYOUTS[0], *size, f"train.max_updates={until}").wait(LIMIT)
        assert outcome.codes == [0, 0], outcome.text
        peaks.append(peak_memory(outcome))
    return {"fresh": peaks[0], "resumed": peaks[1]}


def stall(bench: Bench, trial: int) -> Row | None:
    """Compare how long a save in the background and one without hold up training."""
    if trial >= len(survival_stall.LAYOUTS):
        return None
    return survival_stall.measure(bench.fresh("stall"), survival_stall.LAYOUTS[trial])


def _flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path, random.Random], object]] = {
    "one bit": _flip,
    "truncated": lambda path, draw: os.truncate(path, draw.randrange(path.stat().st_size)),
    "missing": lambda path, draw: path.unlink(),
}


def _usual_seconds(bench: Bench, layout: Sequence[int]) -> float:
    """Return how long an uninterrupted run takes, imports excluded."""
    path = bench.folder / "seconds.txt"
    if not path.exists():
        times = []
        for _ in range(2):
            begin, run = time.monotonic(), bench.fresh("timed")
            bench.train(run, layout).wait(LIMIT)
            times.append(time.monotonic() - begin)
        path.write_text(str(statistics.mean(times)), encoding="utf-8")
    return float(path.read_text(encoding="utf-8"))


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """Return the weights in the newest checkpoint of a run."""
    found = {}
    for path in newest(run).glob("weights.*.safetensors"):
        with safe_open(str(path), framework="pt") as file:
            found.update({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    return found


def difference(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> float:
    """Return the largest difference of a weight."""
    assert expected.keys() == found.keys() and expected
    return max(float((expected[key] - found[key]).abs().max()) for key in expected)


def newest(run: Path) -> Path:
    """Return the newest checkpoint of a run."""
    return max(path for path in run.glob("checkpoints/update_*") if path.name[7:].isdigit())


def _last_update(run: Path) -> int:
    names = [path.name[7:] for path in run.glob("checkpoints/update_*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def _logged_after(run: Path, moment: float) -> bool:
    path = run / "metrics.jsonl"
    return path.exists() and path.stat().st_mtime > moment and _last_logged(run) > 0


def _last_loss(run: Path) -> float:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return float([json.loads(line)["loss"] for line in lines if '"train"' in line][-1])


def _last_logged(run: Path) -> int:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return max((json.loads(line)["update"] for line in lines if '"train"' in line), default=0)


SECTIONS: dict[str, Callable[[Bench, int], Row | None]] = {
    "kills": kill,
    "signals": send_signal,
    "damage": damage,
    "layouts": layouts,
    "memory": memory,
    "stall": stall,
}
"""Name -> trial."""
