"""A package from outside adds a model, a criterion, a task, an optimizer and a schedule at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.forked import command, generate, train
from tests.system.runs import TINY, Lab, losses, records

FOLDER = Path(__file__).with_name("package")
PARTS = (
    "model.name=backwards.model:build",
    "criterion={name: 'backwards.learning:focal', options: {gamma: 1.0}}",
    "task={name: 'backwards.task:Backwards', options: {lines: 12}}",
    "optimizer={name: 'backwards.learning:Lion', options: {lr: 3e-3, beta1: 0.9, beta2: 0.99}}",
    "scheduler={name: 'backwards.learning:triangle', options: {peak: 7, end: 25}}",
    "validation={metrics: [first_words], best: first_words}",
)
MORE = (*PARTS, *TINY[1:], "model.d_model=32", "train.log_every=1", "train.validate_every=12")


def trusted() -> list[str]:
    """What allows each part of the package in a run folder."""
    names = ("model:build", "learning:focal", "task:Backwards", "learning:Lion")
    return [
        word for name in (*names, "learning:triangle") for word in ("--trust", f"backwards.{name}")
    ]


def test_it_trains_resumes_and_generates(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    first, last = (f"train.max_updates={updates}" for updates in (10, 24))
    train(lab.dense, *MORE, last, f"run_dir={whole}", ranks=2)[0].check()
    train(lab.dense, *MORE, first, f"run_dir={parted}", ranks=2)[0].check()
    train(lab.dense, *MORE, last, f"run_dir={parted}", "--resume", ranks=2)[0].check()
    assert losses(parted) == losses(whole)
    assert losses(whole)[24] < losses(whole)[1] - 0.4
    assert [set(line) & {"first_words", "bleu"} for line in records(whole, "valid")] == [
        {"first_words"}
    ] * 2
    rates = [line["lr"] for line in records(whole)]
    assert max(rates) == rates[6] and rates[0] < rates[6] > rates[-1]

    text = tmp_path / "text"
    text.write_text("the man sees\na child reads two books\n", encoding="utf-8")
    options = ("--input", text, "--beam", "3", "--max-len-a", "0", "--max-len-b", "8", *trusted())
    (refused,) = generate(whole, "--input", text)
    assert refused.code == 2 and "backwards.model:build" in refused.err
    (said,) = generate(whole, *options)
    assert len(said.check().out.splitlines()) == 2
    export = tmp_path / "model.safetensors"
    command("export", whole, "--out", export, *trusted())[0].check()
    (again,) = generate(export, *options)
    assert again.check().out == said.out
