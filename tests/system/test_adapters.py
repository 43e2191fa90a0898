"""Adapters and low-rank changes from a trained model to a small file and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import ds_seq
from ds_seq.errors import UserError
from ds_seq.runs.open import load_run
from tests.system.commands import Finished
from tests.system.forked import command, generate, train
from tests.system.runs import NO_VALIDATION, TINY, Lab

ADAPTERS = "model.adapters={ids: [a, b], active: a, gate: true}"
LORA = "model.lora={rank: 2, modules: [query, value, up, experts]}"
SETTINGS = (*TINY, *NO_VALIDATION, "optimizer.weight_decay=0.3")


def _train(lab: Lab, folder: Path, *arguments: str, ranks: int = 1) -> Finished:
    spread = f"train.expert_parallel={ranks}"
    run = (lab.moe, *SETTINGS, f"run_dir={folder}", spread, *arguments)
    return train(*run, ranks=ranks, timeout=120)[0]


def _start(base: Path) -> tuple[str, ...]:
    return (f"train.init_from={base}", "train.init_checkpoint=last", "train.max_updates=2")


@pytest.fixture(scope="module")
def base(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with experts, of two updates."""
    folder = tmp_path_factory.mktemp("adapters") / "base"
    _train(lab, folder, "train.max_updates=2").check()
    return folder


@pytest.fixture(scope="module")
def adapted(lab: Lab, base: Path) -> Path:
    """One of two adapters, trained on two ranks that share the experts."""
    folder, chosen = base.parent / "adapted", "train.trainable=[adapters.a]"
    finished = _train(
        lab, folder, ADAPTERS, chosen, "train.allow_missing=[adapters]", *_start(base), ranks=2
    ).check()
    said = finished.out + finished.err
    assert f"new, not in {base}: 'encoder.layers.*.adapters.for_a.norm.weight' (2)" in said
    assert "frozen: all but adapters.a; " in said
    assert "encoder.layers.*.adapters.for_a.down" in said and "for_b.down\n" not in said
    return folder


def _tensors(run: Path) -> dict[str, Tensor]:
    return dict(load_run(run, "last").model.state_dict())


def _translations(model: Path, lab: Lab, out: Path, *options: str | Path) -> list[str]:
    text = ("--input", lab.text("test.en"), "--output", out, "--checkpoint", "last")
    search = ("--beam", "2", "--max-len-a", "0", "--max-len-b", "6", "--format", "tsv")
    generate(model, *text, *search, *options)[0].check()
    return out.read_text().splitlines()


def test_one_adapter_is_trained_and_all_else_stays(base: Path, adapted: Path, lab: Lab) -> None:
    before, after = _tensors(base), _tensors(adapted)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(after[n].any() == (".for_a." in n) for n in after if n.endswith("adapters.up.bias"))
    for name, value in after.items():
        if ".adapters." in name and name.endswith((".up.weight", ".up.bias")):
            assert bool(value.any()) == (".for_a." in name), name
    moments = [
        key
        for path in adapted.glob("checkpoints/*/optimizer.*.safetensors")
        for key in load_file(path)
    ]
    assert moments and all(".for_a." in key for key in moments)
    # it resumes in another layout
    more = ("--resume", "train.max_updates=3", "train.trainable=[adapters.a]")
    copy = adapted.parent / "resumed"
    command_line = (ADAPTERS, "train.allow_missing=[adapters]", *_start(base))
    _train(lab, copy, *command_line, "train.trainable=[adapters.a]", ranks=2).check()
    _train(lab, copy, *command_line, *more).check()
    resumed = _tensors(copy)
    assert all(torch.equal(resumed[name], value) for name, value in before.items())
    changed = [name for name in after if not torch.equal(resumed[name], after[name])]
    assert changed and all(".for_a." in name for name in changed)


def test_an_adapter_travels_in_a_small_file(
    base: Path, adapted: Path, lab: Lab, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    plain = _translations(base, lab, out)
    trained = _translations(adapted, lab, out)
    assert trained != plain
    for name in ("b", "none"):  # an untrained adapter changes nothing
        assert _translations(adapted, lab, out, "--adapter", name) == plain
    part = tmp_path / "a.safetensors"
    export = ("export", adapted, "--checkpoint", "last", "--out", part, "--only", "adapters.a")
    command(*export)[0].check()
    assert all(".adapters.for_a." in name for name in load_file(part))
    assert part.stat().st_size < 50_000
    assert _translations(base, lab, out, "--part", part) == trained
    assert _translations(base, lab, out, "--part", part, "--adapter", "none") == plain
    lines = ["my sister finds two books", "the man sees a house"]
    options = {"checkpoint": "last", "device": "cpu"}
    own, loaded = ds_seq.load(adapted, **options), ds_seq.load(base, part=part, **options)
    scores = own.score(lines, lines)
    for found, expected in zip(loaded.score(lines, lines), scores, strict=True):
        assert found.log_prob == pytest.approx(expected.log_prob)
    loaded.use_adapter("none")
    assert loaded.score(lines, lines)[0].log_prob != pytest.approx(scores[0].log_prob)
    with pytest.raises(UserError, match="no adapter 'b' in the model; its adapters are a"):
        loaded.use_adapter("b")


def test_mistakes_are_one_line(base: Path, adapted: Path, lab: Lab, tmp_path: Path) -> None:
    part, other = tmp_path / "part.safetensors", tmp_path / "other.safetensors"
    options = ("--checkpoint", "last", "--only")
    command("export", adapted, "--out", part, *options, "adapters")[0].check()
    run = _train(lab, tmp_path / "run", ADAPTERS, *_start(base))
    refused = [
        (run, "has no tensor 'encoder.layers.*.adapters.for_a.norm.weight' (2), "),
        (run, "unless train.allow_missing or train.allow_unexpected names them"),
        (command("export", adapted, "--out", other, *options, "lora")[0], "has no such part"),
        (command("export", adapted, "--out", other, *options, "encoder")[0], "stand alone"),
        (command("export", base, "--out", other, "--merge-lora")[0], "has no low-rank changes"),
    ]
    command("export", base, "--checkpoint", "last", "--out", other)[0].check()
    text = ("--input", lab.text("test.en"), "--output", tmp_path / "out", "--checkpoint", "last")
    further = tmp_path / "further"
    _train(lab, further, "train.max_updates=3").check()
    refused += [
        (generate(base, *text, "--part", other)[0], "not a part of a model"),
        (generate(adapted, *text, "--part", part)[0], "has model.adapters of its own"),
        (generate(further, *text, "--part", part)[0], "belongs to other weights than"),
        (generate(base, *text, "--adapter", "a")[0], "no adapter 'a' in the model; it has none"),
        (
            _train(lab, tmp_path / "run", ADAPTERS, "train.trainable=[adapters.b]"),
            "train.trainable: no sentence passes through adapter b",
        ),
        (
            _train(lab, tmp_path / "run", "train.freeze=[decoder.layers.7]"),
            "train.freeze: nothing in the model is named decoder.layers.7",
        ),
        (_train(lab, tmp_path / "run", "train.freeze=[encodr]"), "did you mean 'encoder'"),
    ]
    for finished, message in refused:
        assert finished.code == 2, message
        assert message in finished.err
        assert "Traceback" not in finished.err


@pytest.mark.slow
def test_low_rank_changes_are_trained_merged_and_carried(
    base: Path, lab: Lab, tmp_path: Path
) -> None:
    folder, out = tmp_path / "run", tmp_path / "out"
    chosen = ("train.trainable=[lora]", "train.allow_missing=[lora]")
    _train(lab, folder, LORA, *chosen, *_start(base), ranks=2).check()
    before, after = _tensors(base), _tensors(folder)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(value.any() for name, value in after.items() if ".lora." in name)
    merged, part = tmp_path / "merged.safetensors", tmp_path / "lora.safetensors"
    export = ("export", folder, "--checkpoint", "last", "--out")
    command(*export, merged, "--merge-lora")[0].check()
    command(*export, part, "--only", "lora")[0].check()
    assert load_file(merged).keys() == before.keys()
    trained = _translations(folder, lab, out)
    assert trained != _translations(base, lab, out)
    assert _translations(merged, lab, out) == trained
    assert _translations(base, lab, out, "--part", part) == trained
