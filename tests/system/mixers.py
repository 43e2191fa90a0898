"""Tiny runs of a model with other mixers than attention, and what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from tests.system.commands import Finished
from tests.system.forked import command, generate, train
from tests.system.runs import NO_VALIDATION, TINY, Lab

QUICK = (*TINY, *NO_VALIDATION, "optimizer.lr=0.02", "scheduler.warmup_updates=1")


class Mixers(NamedTuple):
    """The settings of a model, and its runs."""

    settings: tuple[str, ...]

    def train(
        self, experiment: Path, folder: Path, updates: int, *more: str, ranks: int = 1
    ) -> Path:
        """Train a run; return its folder."""
        options = (f"train.max_updates={updates}", f"run_dir={folder}", *more)
        train(experiment, *QUICK, *self.settings, *options, ranks=ranks)[0].check()
        return folder

    def refused(self, lab: Lab, tmp_path: Path, *more: str) -> Finished:
        """Try to train the dense experiment; return how it was refused."""
        options = (*self.settings, *more, f"run_dir={tmp_path / 'other'}")
        found = train(lab.dense, *QUICK, *options)[0]
        assert found.code == 2 and "Traceback" not in found.err
        return found

    def make_others(self, lab: Lab, tmp_path: Path) -> tuple[Path, str]:
        """Upcycle, average, shrink and prune a dense run; all that results must translate.

        Returns:
            The dense run, and what `prune-heads` has printed.
        """
        dense = self.train(lab.dense, tmp_path / "dense", 4, "train.save_every=2")
        self.train(lab.moe, tmp_path / "upcycled", 1, f"train.init_from={dense}", ranks=2)
        command("average", dense, "--last", "2", "--out", tmp_path / "mean")[0].check()
        student = ("make-student", dense, "--out", tmp_path / "student", "--decoder-layers", "1")
        command(*student)[0].check()
        texts = (lab.text("valid.en"), "--calibration-target", lab.text("valid.de"))
        options = ("--keep", "1", "--calibration", *texts, "--out", tmp_path / "pruned")
        pruned = command("prune-heads", dense, *options)[0].check()
        for each in ("mean", "student", "pruned"):
            assert translation(lab, tmp_path, tmp_path / each).strip()
        return dense, pruned.out


def translation(lab: Lab, tmp_path: Path, *arguments: str | Path) -> str:
    """Translate the test text; return the output."""
    out = tmp_path / "out"
    generate(*arguments, "--input", lab.text("test.en"), "--output", out)[0].check()
    return out.read_text()
