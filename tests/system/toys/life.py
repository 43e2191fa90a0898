"""The life of a run: trained for two updates, resumed for one, and translated with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tests.system.forked import command, generate, train
from tests.system.runs import NO_VALIDATION, TINY, checkpoints, losses

SETTINGS = (*TINY, *NO_VALIDATION, "train.log_every=1", "model.decoder_layers=1")


def live(experiment: str | Path, settings: Sequence[str], run: Path) -> None:
    """Train, checkpoint, resume and translate.

    Args:
        experiment: its file.
        settings: overrides of it; with a `data.dir` of its own the data are prepared first.
        run: the run folder.

    Raises:
        AssertionError: a command failed, or left other things than it should.
    """
    chosen = (experiment, *SETTINGS, *settings, f"run_dir={run}")
    if any(setting.startswith("data.dir=") for setting in settings):
        command("prepare", *chosen)[0].check()
    train(*chosen, "train.max_updates=2")[0].check()
    assert checkpoints(run) == [2]
    resumed = train(*chosen, "train.max_updates=3", "--resume")[0].check()
    assert "resuming at update 2 of 3" in resumed.err
    assert sorted(losses(run)) == [1, 2, 3] and checkpoints(run)[-1] == 3
    text = run / "text"
    text.write_text("the man sees\na child reads two books\n", encoding="utf-8")
    options = ["--max-len-a", "0", "--max-len-b", "6", "--beam", "2"]
    for name in re.findall(r"tests[.\w]+:\w+", " ".join(settings)):  # now the run folder names it
        options += ["--trust", name]
    done = generate(run, "--input", text, *options)[0].check()
    assert len(done.out.splitlines()) == 2
