"""From raw text to a score, dense and with experts: the program learns."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from tests.system.commands import Finished, deepspeed, ds_seq, run
from tests.system.forked import generate
from tests.system.runs import Lab, records

ENOUGH = 75.0
"""BLEU on unseen sentences; both models reach 87 and more, untrained ones 0."""


def bleu(finished: Finished) -> float:
    """The score on the test split that a ``generate`` printed, with its signature."""
    found = re.search(r"^BLEU\|nrefs:1\|\S*version:\S+ = ([\d.]+)", finished.out, re.MULTILINE)
    assert found, finished
    return float(found[1])


@pytest.mark.timeout(240)
def test_a_dense_model_learns(lab: Lab, dense_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.de"
    alone = run(ds_seq("generate", dense_run, "--output", output), timeout=60).check()
    assert bleu(alone) > ENOUGH
    assert len(output.read_text().splitlines()) == 100
    assert "chrF2|" in alone.out


@pytest.mark.timeout(240)
def test_a_model_with_experts_learns_and_translates_alike_on_any_layout(
    lab: Lab, moe_run: Path, tmp_path: Path
) -> None:
    texts, scores = [], []
    for ranks, expert_parallel in ((1, 1), (2, 1), (2, 2)):
        output = tmp_path / f"out.{ranks}.{expert_parallel}"
        arguments = ("--output", output, "--expert-parallel", str(expert_parallel))
        first, *others = generate(moe_run, *arguments, ranks=ranks)
        assert all(rank.code == 0 and not rank.out for rank in others)
        texts.append(output.read_text())
        scores.append(bleu(first.check()))
    assert scores[0] > ENOUGH
    assert scores == scores[:1] * 3
    assert texts == texts[:1] * 3


@pytest.mark.slow  # tests/distributed has the same through torch's launcher
def test_two_processes_of_the_launcher_translate_in_the_order_of_the_input(
    lab: Lab, moe_run: Path, tmp_path: Path
) -> None:
    lines = lab.text("test.en").read_text().splitlines()[:7]
    uneven, out = tmp_path / "in.en", tmp_path / "out.de"
    uneven.write_text("\n".join(["", *lines]) + "\n")
    arguments: list[str | Path] = [
        moe_run,
        "--input",
        uneven,
        "--output",
        out,
        "--expert-parallel",
        "2",
    ]
    run(deepspeed("generate", *arguments), timeout=60).check()
    generate(moe_run, "--input", uneven, "--output", tmp_path / "alone.de")[0].check()
    assert out.read_text() == (tmp_path / "alone.de").read_text()
    translations = out.read_text().splitlines()
    assert len(translations) == 8 and translations[0] == "" and all(translations[1:])


def test_training_says_how_it_goes(moe_run: Path, moe_training: Finished) -> None:
    assert "2 rank(s), expert parallel 2, ZeRO 1, fp32, cpu" in moe_training.err
    assert "share of tokens per expert" in moe_training.err
    signature = "valid bleu is of detokenized text, signature nrefs:1|"
    assert moe_training.err.count(signature) == 1
    assert moe_training.err.count("stopped at update 120 (max_updates)") == 1
    assert "Traceback" not in moe_training.err


def test_the_log_reports_every_part(moe_run: Path) -> None:
    last = records(moe_run)[-1]
    assert last["update"] == 120
    assert {"loss", "ce", "nll", "ppl", "load_balance", "router_z", "lr", "grad_norm"} <= set(last)
    for layer in (0, 1):
        assert sum(last[f"moe/layer{layer}/load"]) == pytest.approx(1.0)
        assert 0.0 <= last[f"moe/layer{layer}/dropped"] < 0.2
    valid = records(moe_run, "valid")
    assert [line["update"] for line in valid] == [60, 120]
    assert valid[-1]["bleu"] > ENOUGH and valid[-1]["bleu_signature"].startswith("nrefs:1|")


def test_tensorboard_shows_the_run(moe_run: Path) -> None:
    events = EventAccumulator(str(moe_run / "tensorboard")).Reload()
    tags = set(events.Tags()["scalars"])
    train = ("loss", "ce", "load_balance", "lr", "grad_norm", "loss_scale", "tokens_per_second")
    assert {f"train/{name}" for name in train} <= tags
    assert {"valid/loss", "valid/bleu", "valid/chrf"} <= tags
    assert {f"moe/layer{layer}/load/{expert}" for layer in (0, 1) for expert in range(4)} <= tags
    assert [event.step for event in events.Scalars("valid/bleu")] == [60, 120]


_WITHOUT_DEEPSPEED = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "deepspeed":
            raise ImportError("deepspeed is not here")

sys.meta_path.insert(0, Block())
from ds_seq.cli import main
run, text, *outs = sys.argv[1:]
for out in outs:
    assert main(["export", run, "--out", out]) == 0
    assert main(["generate", out, "--input", text, "--output", out + ".de"]) == 0
"""


def test_an_exported_model_translates_alike_without_deepspeed(
    lab: Lab, moe_run: Path, tmp_path: Path
) -> None:
    program, text = tmp_path / "program.py", lab.text("test.en")
    program.write_text(_WITHOUT_DEEPSPEED)
    outs = [tmp_path / "folder", tmp_path / "one.safetensors"]
    run([*ds_seq()[:1], program, moe_run, text, *outs], timeout=60).check()
    assert sorted(p.name for p in outs[0].iterdir()) == [
        "config.yaml",
        "model.safetensors",
        "vocab.model",
    ]
    generate(moe_run, "--input", text, "--output", tmp_path / "theirs")[0].check()
    for out in outs:
        assert out.with_name(f"{out.name}.de").read_text() == (tmp_path / "theirs").read_text()
