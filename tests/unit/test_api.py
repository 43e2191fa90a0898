"""ds_seq as a library: the same output as the commands, in a process that imports nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import ds_seq
from ds_seq import cli
from ds_seq.commands import generate, rescore
from ds_seq.commands.export import main as export
from ds_seq.config.load import load_experiment
from ds_seq.errors import EXIT_USER_ERROR, UserError
from ds_seq.runs.card import ModelCard, StoredRun
from ds_seq.runs.formats import FORMATS
from ds_seq.runs.open import load_run, open_run
from tests.unit.commands.test_rescore import write_lab

MODELS = ("dense", "moe", "dense.safetensors", "folder")
OPTIONS: dict[str, Any] = {"length_penalty": 0.5, "min_len": 2}

_SCRIPT = """\
import json, sys
import ds_seq
assert set(sys.modules) & {"torch", "ds_seq.api"} == set()
options = json.loads(sys.argv[1])
sources, targets = (open(name, encoding="utf-8").read().splitlines() for name in sys.argv[2:4])
results = []
for path in sys.argv[4:]:
    model = ds_seq.load(path, device="cpu")
    listed = model.translate(sources, beam=4, n_best=3, **options)
    results.append({
        "best": model.translate(sources),
        "tsv": [f"{n}\\t{score:.6f}\\t{text}"
                for n, found in enumerate(listed, 1) for text, score in found],
        "scores": [[score, tokens] for _, tokens, score in model.score(sources, targets)],
        "encoded": [list(model.encode(sources).states.shape), model.card.max_positions],
    })
assert "deepspeed" not in sys.modules
json.dump(results, sys.stdout)
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders, an exported file and an exported folder, and two texts."""
    folder = tmp_path_factory.mktemp("lab")
    write_lab(folder)
    for name in ("dense.safetensors", "folder"):
        assert export([str(folder / "dense"), "--out", str(folder / name)]) == 0
    return folder


def command(main: Any, lab: Path, name: str, *arguments: object) -> list[str]:
    """The lines that a command writes."""
    out = lab / "out"
    argv = [lab / name, *arguments, "--output", out, "--device", "cpu"]
    assert main([str(argument) for argument in argv]) == 0
    return out.read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def results(lab: Path) -> dict[str, Any]:
    """What a fresh process answers, by model."""
    paths = [str(lab / name) for name in ("src", "tgt", *MODELS)]
    argv = [sys.executable, "-c", _SCRIPT, json.dumps(OPTIONS), *paths]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return dict(zip(MODELS, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_a_fresh_process_says_what_the_commands_say(
    lab: Path, results: dict[str, Any], name: str
) -> None:
    found, texts = results[name], (lab / "src", lab / "tgt")
    assert found["best"] == command(generate.main, lab, name, "--input", texts[0])
    options = [f"--{key}={value}".replace("_", "-") for key, value in OPTIONS.items()]
    several = ["--beam", 4, "--n-best", 3, "--format", "tsv", *options]
    assert found["tsv"] == command(generate.main, lab, name, "--input", texts[0], *several)
    pair = ["--source", texts[0], "--hypotheses", texts[1], "--format", "jsonl"]
    rows = [json.loads(row) for row in command(rescore.main, lab, name, *pair)]
    (hypotheses,) = zip(*(row["hypotheses"] for row in rows), strict=True)
    assert found["scores"] == [[one["score"], one["token_scores"]] for one in hypotheses]
    lines = texts[0].read_text(encoding="utf-8").splitlines()
    longest = (
        max(len(open_run(lab / name, "best").tokenizers.source.encode(line)) for line in lines) + 1
    )
    assert found["encoded"] == [[len(lines), longest, 16], 60]


def test_one_line_or_many(lab: Path) -> None:
    model = ds_seq.load(lab / "dense", device="cpu")
    lines = (lab / "src").read_text(encoding="utf-8").splitlines()[:2]
    many = model.translate(lines)
    assert [model.translate(line) for line in lines] == many
    best = model.translate(lines[0], n_best=2)
    assert [type(one).__name__ for one in best] == ["Translation"] * 2
    assert best[0].text == many[0] and best[0].score >= best[1].score
    assert model.translate([]) == [] and model.score([], []) == []
    (scored,) = model.score(lines[0], many[0])
    assert scored.log_prob == pytest.approx(sum(scored.token_scores))
    assert not model.module.training
    assert (model.card.source_lang, model.card.target_lang) == ("en", "de")


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_encoder_states_of_a_line_do_not_depend_on_the_others(lab: Path, name: str) -> None:
    model = ds_seq.load(lab / name, device="cpu")
    lines = (lab / "src").read_text(encoding="utf-8").splitlines()
    states, mask = model.encode(lines)
    assert mask.sum(1).tolist() == [
        len(ids) + 1 if (ids := model.card.tokenizers.source.encode(line)) else 0 for line in lines
    ]
    assert not states[~mask].any()
    for line, row, real in zip(lines, states, mask, strict=True):
        if real.any():
            alone = model.encode(line).states[0]
            torch.testing.assert_close(row[real], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"length_penality": 1.0},
            "no search option 'length_penality' (did you mean 'length_penalty'?)",
        ),
        ({"beam": 0}, "beam: should be at least 1, not 0"),
        ({"beam": 2, "n_best": 3}, "the search keeps 2 hypotheses"),
        ({"sampling_top_k": 3}, "sampling_top_k: has no effect without sampling: true"),
    ],
)
def test_wrong_options_are_named(lab: Path, options: dict[str, Any], words: str) -> None:
    model = ds_seq.load(lab / "dense", device="cpu")
    with pytest.raises(ds_seq.UserError) as caught:
        model.translate(["x"], **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("nowhere", {}, "no such run folder or exported file"),
        ("dense", {"checkpoint": "update_7"}, "no checkpoint 'update_7'"),
        ("dense", {"device": "abacus"}, "no such kind of device"),
        ("dense", {"dtype": "bf61"}, "no number format 'bf61' (did you mean 'bf16'?)"),
        ("dense", {"dtype": torch.float64}, "no number format 'torch.float64'"),
    ],
)
def test_what_cannot_be_loaded(lab: Path, name: str, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        ds_seq.load(lab / name, **arguments)
    assert words in str(caught.value)


def test_texts_of_unequal_length_have_no_scores(lab: Path) -> None:
    with pytest.raises(UserError, match="sources has 2 lines but targets has 1"):
        ds_seq.load(lab / "dense", device="cpu").score(["a", "b"], ["a"])


def test_long_lines_are_cut_and_reported(lab: Path) -> None:
    model = ds_seq.load(lab / "dense", device="cpu")
    with pytest.warns(UserWarning, match="longer than the model can take were cut: 2"):
        model.translate(["the man", "the man sees " * 60])


def test_number_formats_have_two_spellings(lab: Path) -> None:
    for dtype in ("bf16", torch.bfloat16):
        parameter = next(ds_seq.load(lab / "dense", device="cpu", dtype=dtype).module.parameters())
        assert parameter.dtype == torch.bfloat16


def test_a_model_without_an_experiment_can_be_used_but_not_changed(lab: Path) -> None:
    run = open_run(lab / "dense", "best")
    bare = StoredRun(run.card, run.model_config, run.weights)
    with pytest.raises(UserError, match="comes without the experiment of its training"):
        bare.require_experiment()
    assert run.require_experiment() == load_experiment(lab / "dense" / "config.yaml")
    loaded = load_run(lab / "dense", "best")
    assert loaded.require_experiment() == run.experiment
    assert ModelCard.of_experiment(run.require_experiment(), run.tokenizers) == run.card


class Pointer:
    """A third-party format: a file that names the model and has no experiment."""

    def detects(self, path: Path) -> bool:
        """See `ds_seq.runs.formats.Format`."""
        return path.suffix == ".pointer"

    def open(self, path: Path, checkpoint: str) -> StoredRun:
        """See `ds_seq.runs.formats.Format`."""
        run = open_run(path.read_text(), checkpoint)
        return StoredRun(run.card, run.model_config, run.weights)


def test_a_format_is_one_reader(
    lab: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ds_seq.runs.open.FORMATS", (Pointer(), *FORMATS))
    (lab / "x.pointer").write_text(str(lab / "moe"))
    lines = (lab / "src").read_text(encoding="utf-8").splitlines()
    expected = ds_seq.load(lab / "moe", device="cpu").translate(lines)
    assert ds_seq.load(lab / "x.pointer", device="cpu").translate(lines) == expected
    assert command(generate.main, lab, "x.pointer", "--input", lab / "src") == expected
    pair = ["--source", lab / "src", "--hypotheses", lab / "tgt"]
    scores = command(rescore.main, lab, "moe", *pair)
    assert command(rescore.main, lab, "x.pointer", *pair) == scores
    out = str(lab / "exported.safetensors")
    assert cli.main(["export", str(lab / "x.pointer"), "--out", out]) == EXIT_USER_ERROR
    assert "comes without the experiment of its training" in capsys.readouterr().err


def test_other_names_are_no_attributes() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        ds_seq.lod  # type: ignore[attr-defined]  # noqa: B018
