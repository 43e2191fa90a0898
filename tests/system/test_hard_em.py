"""A mixture trained by hard EM, from the data to translations by each expert."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.system.forked import command, generate, train
from tests.system.runs import NO_VALIDATION, TINY, Lab, losses, records

EXPERTS = ("<one>", "<two>")


def _settings(lab: Lab, folder: Path, more: str = "") -> tuple[str | Path, ...]:
    names = ", ".join(EXPERTS)
    vocab = f"data.vocab={{size: 260, model_type: bpe, user_symbols: [{names}]}}"
    base = f"criterion.base={{name: hard_em, experts: [{names}]{more}}}"
    limits = ("model.dropout=0", "model.moe.capacity_factor=null", "train.max_sentences=3")
    sgd = "optimizer={name: sgd, lr: 0.1}"
    run = (*TINY, *NO_VALIDATION, *limits, "train.max_tokens=500", "train.log_every=1", sgd)
    return (lab.moe, *run, f"data.dir={folder}/data", vocab, base, f"run_dir={folder}/run")


@pytest.fixture(scope="module")
def folder(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two updates in one process."""
    folder = tmp_path_factory.mktemp("mixture")
    settings = _settings(lab, folder)
    command("prepare", *settings)[0].check()
    one_rank = ("train.expert_parallel=1", "train.accumulate=2", "train.max_updates=2")
    train(*settings, *one_rank)[0].check()
    first = records(folder / "run")[0]
    assert first["expert1"] + first["expert2"] == pytest.approx(1.0)
    return folder


def test_translations_by_expert(lab: Lab, folder: Path) -> None:
    lines = lab.text("test.en").read_text().splitlines()[:3]
    (folder / "few.en").write_text("\n".join(lines) + "\n")
    found = {}
    for expert in ("2", "all"):
        out = folder / f"{expert}.jsonl"
        text = ("--input", folder / "few.en", "--output", out, "--format", "jsonl")
        search = ("--beam", "2", "--max-len-a", "0", "--max-len-b", "6", "--expert", expert)
        generate(folder / "run", *text, *search, "--checkpoint", "last")[0].check()
        rows = [json.loads(line)["hypotheses"] for line in out.read_text().splitlines()]
        found[expert] = [[each["score"] for each in row] for row in rows]
    assert [len(row) for row in found["all"]] == [2, 2, 2]
    for (first, second), (alone,) in zip(found["all"], found["2"], strict=True):
        assert second == pytest.approx(alone, abs=1e-5) and first != second
    text = ("--input", folder / "few.en", "--checkpoint", "last", "--expert", "all")
    refused = generate(folder / "run", *text)[0]
    assert refused.code == 2 and "--format text has one" in refused.err
    assert "Traceback" not in refused.err


@pytest.mark.slow
@pytest.mark.parametrize("stage", range(4))
def test_layouts_make_the_same_mixture(lab: Lab, folder: Path, stage: int) -> None:
    zero = f"train.deepspeed={Path(__file__).parents[2]}/configs/ds_config/zero{stage}.json"
    run = folder / f"zero{stage}"
    settings = (*_settings(lab, folder), f"run_dir={run}", zero, "train.max_updates=2")
    train(*settings, ranks=2)[0].check()
    for update, loss in losses(folder / "run").items():
        assert losses(run)[update] == pytest.approx(loss, rel=1e-4), f"update {update}"


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize("assignment", ["hard", "soft"])
def test_a_learned_prior_is_that_of_any_layout_and_is_left_behind(
    lab: Lab, folder: Path, stage: int, assignment: str
) -> None:
    zero = f"train.deepspeed={Path(__file__).parents[2]}/configs/ds_config/zero{stage}.json"
    settings = _settings(lab, folder, f", prior: learned, assignment: {assignment}")
    runs = [folder / f"{assignment}{stage}-{ranks}" for ranks in (1, 2)]
    one = ("train.expert_parallel=1", "train.accumulate=2")
    for number, run in enumerate(runs):
        layout = (zero, f"run_dir={run}", *(() if number else one))
        half, whole = ("train.max_updates=2",), ("train.max_updates=4", "--resume")
        for length in (half, whole):
            said = train(*settings, *layout, *length, ranks=number + 1)[0].check().err
            assert "prior: " in said
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), rel=1e-4)
    few = ("--input", folder / "few.en", "--checkpoint", "last", "--max-len-b", "4")
    (folder / "few.en").write_text("A sentence.\n")
    generate(runs[0], *few, "--expert", "2")[0].check()
