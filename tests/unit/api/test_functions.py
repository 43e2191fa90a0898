"""Functions of `import ds_seq` say what their commands say; wrong input is a `UserError`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ds_seq
from ds_seq import cli
from ds_seq.errors import EXIT_USER_ERROR
from tests.unit.commands.test_rescore import write_lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs `dense` and `moe`, texts `src` and `tgt`."""
    folder = tmp_path_factory.mktemp("lab")
    write_lab(folder)
    return folder


def lines(lab: Path, name: str) -> list[str]:
    return (lab / name).read_text(encoding="utf-8").splitlines()


def said(capsys: pytest.CaptureFixture[str], *command: object) -> str:
    """What a command prints."""
    assert cli.main(list(map(str, command))) == 0
    return capsys.readouterr().out


def assert_same(ours: Path, theirs: Path) -> None:
    """Tensors are equal; the order in the header is not fixed."""
    torch.testing.assert_close(load_file(ours), load_file(theirs), rtol=0, atol=0)


def test_scores_are_those_of_the_command(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    systems = {"tgt": lines(lab, "tgt"), "src": lines(lab, "src")}
    names = [str(lab / name) for name in ("tgt", *systems)]
    printed = json.loads(said(capsys, "score", names[0], "--systems", *names[2:], "--json"))
    (shown,) = printed["systems"]
    scores = ds_seq.score_translations(systems["src"], systems["tgt"])
    assert {s.name: (s.value, s.signature) for s in scores} == {
        name: (score["value"], score["signature"]) for name, score in shown["scores"].items()
    }
    compared = ds_seq.compare_systems(systems, systems["tgt"])
    assert compared["src"][0].value == pytest.approx(scores[0].value, abs=1e-4)
    assert compared["tgt"][0].p_value is None and compared["src"][0].p_value is not None


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_an_explanation_adds_up(lab: Path, name: str) -> None:
    model = ds_seq.load(lab / name, device="cpu")
    source, target = lines(lab, "src")[0], lines(lab, "tgt")[0]
    found = model.explain(source, target, num_candidates=3)
    (score,) = model.score(source, target)
    assert found.log_probs == pytest.approx(score.token_scores, rel=1e-4)
    size, length = len(found.source), len(found.target)
    assert [len(row) for row in found.candidates] == [3] * length == [3] * len(found.log_probs)
    for row, log_prob in zip(found.candidates, found.log_probs, strict=True):
        assert row[0].log_prob >= log_prob - 1e-6
    for weights in found.cross_attention:
        assert weights.shape[1:] == (length, size)
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))
    assert bool(found.experts) == (name == "moe")
    for layer in found.experts:
        assert len(layer.visits) == {"source": size, "target": length}[layer.side or ""]
        assert all(0 <= visit.expert < layer.num_experts for row in layer.visits for visit in row)
    best = model.explain(source)
    assert best.text == model.translate(source)
    again = model.explain(source, target, num_candidates=3)
    assert again.log_probs == found.log_probs and again.experts == found.experts


def test_files_that_are_written_are_those_of_the_commands(
    lab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = lab / "files"
    out.mkdir()
    said(capsys, "export", lab / "dense", "--out", out / "a.safetensors", "--dtype", "bf16")
    path = ds_seq.export(lab / "dense", out / "b.safetensors", dtype="bf16")
    assert_same(path, out / "a.safetensors")
    said(capsys, "average", lab / "dense", path, "--out", out / "c.safetensors")
    done = ds_seq.average_models([lab / "dense", path], out / "d.safetensors")
    assert_same(done.path, out / "c.safetensors")
    assert [part.path for part in done.parts] == [
        lab / "dense" / "checkpoints" / "update_00000010",
        path,
    ]
    assert all(each.is_sound for each in ds_seq.verify(done.path))
    content = bytearray(done.path.read_bytes())
    content[-1] ^= 1
    done.path.write_bytes(content)
    assert not all(each.is_sound for each in ds_seq.verify(done.path))


BASE: dict[str, Any] = {
    "name": "x",
    "data": {"source_lang": "en", "target_lang": "de", "dir": "nowhere"},
    "validation": {"metrics": [], "best": "loss"},
}


def test_a_check_knows_sizes_and_costs() -> None:
    found = ds_seq.check(BASE, "model.d_model=64", world_size=2, gpu_memory=80, elsewhere=True)
    assert found.config == ds_seq.resolve(BASE, "model.d_model=64") and found.world_size == 2
    assert found.size is not None and found.costs is not None
    assert found.costs.size == found.size and found.engine["gradient_clipping"] is not None
    with pytest.raises(ds_seq.UserError, match="nowhere"):
        ds_seq.check(BASE)


def test_a_recipe_is_an_experiment() -> None:
    recipes = {recipe.name: recipe for recipe in ds_seq.list_recipes()}
    found = ds_seq.check(recipes["tiny_moe"].path, elsewhere=True)
    assert found.config.model.moe is not None


WRONG = {
    "score": lambda lab: ds_seq.score_translations(["a"], ["a", "b"]),
    "metric": lambda lab: ds_seq.score_translations(["a"], ["a"], metrics=["bleurt"]),
    "comet": lambda lab: ds_seq.score_translations(["a"], ["a"], metrics=["comet"]),
    "one system": lambda lab: ds_seq.compare_systems({"x": ["a"]}, ["a"]),
    "explain nothing": lambda lab: ds_seq.load(lab / "dense", device="cpu").explain(" ", "x"),
    "candidates": lambda lab: ds_seq.load(lab / "dense", device="cpu").explain(
        "a", "b", num_candidates=0
    ),
    "perplexity": lambda lab: ds_seq.load(lab / "dense", device="cpu").perplexity(["a"]),
    "export": lambda lab: ds_seq.export(lab / "dense", lab / "moe"),
    "average": lambda lab: ds_seq.average_models(lab / "dense", lab / "new"),
    "last and best": lambda lab: ds_seq.average_models(lab / "dense", lab / "new", last=1, best=1),
    "shortlist": lambda lab: ds_seq.learn_shortlist(lab / "dense", lab / "nowhere", lab / "new"),
    "runs": lambda lab: ds_seq.list_runs(lab / "nowhere"),
    "curves": lambda lab: ds_seq.read_curves(lab / "dense"),
    "verify": lambda lab: ds_seq.verify(lab / "nowhere"),
    "nothing to shrink": lambda lab: ds_seq.make_student(lab / "dense", lab / "new"),
    "no such stack": lambda lab: ds_seq.make_student(lab / "dense", lab / "new", {"middle": 1}),
    "no such layer": lambda lab: ds_seq.make_student(lab / "dense", lab / "new", {"encoder": [9]}),
    "dense": lambda lab: ds_seq.make_student(
        lab / "dense", lab / "new", merged_on=ds_seq.MeasuredPairs(lab)
    ),
    "no experts": lambda lab: ds_seq.expert_loads(lab / "dense", lab),
    "experts to prune": lambda lab: ds_seq.prune_experts(
        lab / "dense", lab / "new", "1", ds_seq.TextFiles(str(lab / "src"))
    ),
    "heads to keep": lambda lab: ds_seq.prune_heads(
        lab / "dense", lab / "new", 99, ds_seq.TextFiles(str(lab / "src"))
    ),
    "share of heads": lambda lab: ds_seq.prune_heads(
        lab / "dense", lab / "new", 1.5, ds_seq.TextFiles(str(lab / "src"))
    ),
    "no folder": lambda lab: ds_seq.import_huggingface(lab / "nowhere", lab / "new"),
    "no model": lambda lab: ds_seq.build_server(),
    "resolve": lambda lab: ds_seq.resolve(BASE, "model.d_modell=3"),
}


def test_a_student_is_that_of_the_command(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shrunk = ["make-student", lab / "dense", "--encoder-copy", "1", "--decoder-layers", 1]
    printed = said(capsys, *shrunk, "--out", lab / "student" / "a")
    made = ds_seq.make_student(lab / "dense", lab / "student" / "b", {"encoder": [1], "decoder": 1})
    assert_same(made.path, next((lab / "student" / "a").glob("*.safetensors")))
    assert f"{made.num_parameters[0]:,} -> {made.num_parameters[1]:,}" in printed
    assert made.layers.of("encoder") == [1] and len(made.layers.of("decoder")) == 1


def test_a_server_answers_without_a_port(lab: Path) -> None:
    client = pytest.importorskip("fastapi.testclient")
    server = ds_seq.build_server(f"one={lab / 'dense'}", f"two={lab / 'moe'}", device="cpu")
    source = lines(lab, "src")[0]
    try:
        with client.TestClient(server.app) as asking:
            answer = asking.post("/translate", json={"text": source, "model": "two"}).json()
    finally:
        server.close()
    expected = ds_seq.load(lab / "moe", device="cpu").translate(source)
    assert answer["lines"][0]["hypotheses"][0]["text"] == expected


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_line(lab: Path, name: str) -> None:
    with pytest.raises(ds_seq.UserError) as caught:
        WRONG[name](lab)
    assert 10 < len(str(caught.value)) and "\n" not in str(caught.value)
    assert not (lab / "new").exists()


def test_a_command_ends_with_what_a_function_raises(
    lab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ds_seq.UserError) as caught:
        ds_seq.average_models(lab / "dense", lab / "new")
    assert cli.main(["average", str(lab / "dense"), "--out", str(lab / "new")]) == EXIT_USER_ERROR
    assert str(caught.value) in capsys.readouterr().err
