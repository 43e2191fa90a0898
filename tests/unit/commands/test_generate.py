"""`ds-seq generate`: its arguments, files and messages, with a table for a model."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ds_seq.commands import generate, options, score
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.errors import EXIT_USER_ERROR, UserError, run_command
from ds_seq.names import OUTPUT_FORMATS as FORMATS
from ds_seq.runs.card import LoadedRun, ModelCard
from ds_seq.text.tokenizer import Tokenizers
from tests.unit.search.table_model import TableModel, WordTokenizer

VOCAB = 9
WEIGHTS = "weights.safetensors"
LINES = ["w4 w5", "", "w6 w7 w8", "w4"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``in``, ``ref`` and a test split; any requested run folder "loads"."""
    (tmp_path / "in").write_text("".join(f"{line}\n" for line in LINES))
    (tmp_path / "ref").write_text("w5\n\nw6 w6\nw8\n")
    split = {"source": str(tmp_path / "in"), "target": str(tmp_path / "ref")}
    data = {"source_lang": "de", "target_lang": "en", "dir": "d"}
    data |= {"max_source_length": 12, "max_target_length": 12}
    config = ExperimentConfig.model_validate(
        {
            "name": "test",
            "data": {**data, "raw": {"valid": split, "test": split}},
            "model": {"preset": "tiny", "max_positions": 12},
        }
    )

    weights = tmp_path / WEIGHTS
    save_file({"table": torch.zeros(1)}, weights, {"ds_seq.format": "1"})

    def load(run: str, checkpoint: str, *args: object) -> LoadedRun:
        assert checkpoint == "best"
        assert run in ("the_run", "other_run", "strange_run")
        vocab = WordTokenizer(VOCAB)
        if run == "strange_run":
            vocab.fingerprint = "of other words"
        seed = 7 if run == "other_run" else 0
        card = ModelCard.of_experiment(config, Tokenizers.shared(vocab))
        model: Any = TableModel(VOCAB, seed)
        return LoadedRun(card, config.model, model, weights, config)

    monkeypatch.setattr(options, "load_packed", load)
    return tmp_path


def call(*arguments: object) -> int:
    return run_command(generate.main, ["the_run", *map(str, arguments)])


def test_output_file_and_scores(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--input", folder / "in", "--output", folder / "out"]
    assert call(*files, "--reference", folder / "ref", "--samples", 2) == 0
    lines = (folder / "out").read_text().splitlines()
    assert [bool(line) for line in lines] == [True, False, True, True]
    out, err = capsys.readouterr()
    assert "BLEU|" in out and "chrF2|" in out and out.count("source") == 2
    assert "translated 4 sentences" in err


def test_without_input_the_test_split_is_translated(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call() == 0
    split, messages = capsys.readouterr()
    assert call("--input", folder / "in") == 0
    assert (split, "BLEU|" in messages) == (capsys.readouterr().out, True)


def test_without_reference_there_is_no_score(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--input", folder / "in") == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == len(LINES)
    assert "BLEU" not in out + err


@pytest.mark.parametrize("place", [0, 1, 3])
def test_the_launchers_argument_may_stand_anywhere(folder: Path, place: int) -> None:
    arguments = ["the_run", "--input", str(folder / "in"), "--output", str(folder / "out")]
    arguments.insert(place, "--local_rank=0")
    assert generate.main(arguments) == 0


def test_results_of_evaluations_collect_in_a_file(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = folder / "results.json"
    assert call("--results", results) == 0
    assert call("--results", results, "--beam", 2) == 0
    assert call("--results", results, "--input", folder / "in", "--reference", folder / "ref") == 0
    found = json.loads(results.read_text())
    assert [len(found[name]) for name in ("data.raw.test", str(folder / "in"))] == [2, 1]
    first, second = found["data.raw.test"]
    printed = capsys.readouterr().err
    for label, key in (("BLEU", "bleu"), ("chrF2", "chrf")):
        assert f"{label}|{first[f'{key}_signature']} = {first[key]:.2f}" in printed
    assert (first["generation"]["beam"], second["generation"]["beam"]) == (5, 2)
    assert (first["n_obs"], first["n_resumed"], first["ranks"]) == (len(LINES), 0, 1)
    assert first["seconds_per_sample"] > 0 and first["models"] == [str(folder / WEIGHTS)]


def test_results_have_the_metrics_and_intervals_that_are_asked_for(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are those of `ds-seq score` for the same texts."""
    results, out = folder / "results.json", folder / "out"
    asked = ["--metrics", "rouge", "chrf", "--confidence"]
    given = ["--input", folder / "in", "--reference", folder / "ref", "--output", out]
    assert call("--results", results, *given, *asked) == 0
    printed = capsys.readouterr().out
    (found,) = json.loads(results.read_text())[str(folder / "in")]
    words = [*map(str, (out, folder / "ref")), "--target-lang", "en", "--json", *asked]
    assert score.main(words) == 0
    (expected,) = json.loads(capsys.readouterr().out)["systems"]
    assert list(expected["scores"]) == ["rouge1", "rouge2", "rougeL", "rougeLsum", "chrf"]
    for name, values in expected["scores"].items():
        keys = {"value": name, **{key: f"{name}_{key}" for key in ("signature", "mean", "ci")}}
        assert {key: values[key] for key in keys} == {key: found[keys[key]] for key in keys}
        assert f"|{values['signature']} = {values['value']:.2f}" in printed
    assert "bleu" not in found


def test_search_options_override_the_experiment(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--min-len", 4, "--max-len-a", 0, "--max-len-b", 4, "--beam", 1) == 0
    lengths = {len(line.split()) for line in capsys.readouterr().out.splitlines()}
    assert lengths == {0, 4}


def test_n_best_lists_with_scores_of_the_best(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--samples", 1) == 0
    plain = capsys.readouterr()
    assert call("--samples", 1, "--n-best", 3, "--format", "tsv") == 0
    listed = capsys.readouterr()
    rows = [row.split("\t") for row in listed.out.splitlines()]
    assert [row[0] for row in rows] == list("1112333444")
    assert [rows[i][2] for i in (0, 3, 4, 7)] == plain.out.splitlines()
    assert [w for w in listed.err.splitlines() if "BLEU|" in w or "translation  " in w] == [
        w for w in plain.err.splitlines() if "BLEU|" in w or "translation  " in w
    ]


def test_more_samples_than_the_beam_is_wide(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--sampling", "true", "--n-best", 9, "--format", "tsv") == 0
    rows = [row.split("\t") for row in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == [*"1" * 9, "2", *"3" * 9, *"4" * 9]
    assert len({row[2] for row in rows[:9]}) > 4


def test_reference_lines_only_with_a_reference(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marks = []
    for more in ([], ["--reference", folder / "ref"]):
        assert call("--input", folder / "in", "--format", "fairseq", *more) == 0
        marks.append([row[:3] for row in capsys.readouterr().out.splitlines()])
    assert marks[0] == [f"{kind}-{line}" for line in range(4) for kind in "SHDP"]
    assert marks[1] == [f"{kind}-{line}" for line in range(4) for kind in "STHDP"]


def test_long_lines_are_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "in").write_text("w4\n" + "w5 " * 5000 + "\n")
    assert call("--input", folder / "in") == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert [line for line in err.splitlines() if "warning" in line] == [
        "ds-seq: warning: 1 sentence(s) longer than the model can take were cut; line(s) 2"
    ]


@pytest.mark.parametrize("streams", [False, True])
def test_unsatisfiable_constraints_are_reported(
    streams: bool,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every output on the list is shorter than a translation may be."""
    (folder / "allowed").write_text("w4\nw5 w6\n")
    (folder / "in").write_text("w4\n\nw5\n")
    feed(monkeypatch, ["w4", "", "w5"])
    given = "-" if streams else folder / "in"
    assert call("--input", given, "--allowed", folder / "allowed", "--min-len", 3) == 0
    out, err = capsys.readouterr()
    assert out == "\n\n\n"
    assert [line for line in err.splitlines() if "warning" in line] == [
        "ds-seq: warning: 2 sentence(s) have no translation that all options allow; they are "
        "empty; line(s) 1, 3"
    ]


def test_long_lines_may_be_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "in").write_text("w4\n" + "w5 " * 5000 + "\nw6\n")
    assert call("--input", folder / "in", "--long-lines", "skip") == 0
    out, err = capsys.readouterr()
    assert [bool(line) for line in out.splitlines()] == [True, False, True]
    assert "1 sentence(s) longer than the model can take were left out; line(s) 2" in err


def feed(monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> None:
    text = "".join(f"{line}\n" for line in lines).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("sampling", ["false", "true"])
def test_a_stream_says_what_a_file_says(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    form: str,
    sampling: str,
) -> None:
    """Line numbers and random numbers continue from buffer to buffer."""
    more = ["--format", form, "--sampling", sampling]
    assert call("--input", folder / "in", *more) == 0
    expected = capsys.readouterr().out
    for size in (1, 3, 100):
        feed(monkeypatch, LINES)
        assert call("--input", "-", "--buffer-size", size, *more) == 0
        assert capsys.readouterr().out == expected
    feed(monkeypatch, LINES)
    assert call("--input", "-", "--output", folder / "out", *more) == 0
    assert (folder / "out").read_text() == expected


def test_a_stream_reports_long_lines_of_all_buffers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    feed(monkeypatch, ["w4", "w5 " * 50, "", "w6 " * 12])
    assert call("--input", "-", "--buffer-size", 2) == 0
    assert "2 sentence(s) longer than the model can take were cut; line(s) 2, 4" in (
        capsys.readouterr().err
    )
    feed(monkeypatch, ["w4", "w5", "", "w6 " * 12])
    arguments = ["--input", "-", "--buffer-size", 2, "--long-lines", "error"]
    assert call(*arguments) == EXIT_USER_ERROR
    out, err = capsys.readouterr()
    assert out.count("\n") == 2 and "line 4: has 12 tokens" in err


def test_several_runs_translate_together(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = []
    for runs in (["the_run"], ["other_run"], ["the_run", "other_run"], ["other_run", "the_run"]):
        arguments = [*runs, "--input", str(folder / "in"), "--format", "tsv"]
        assert run_command(generate.main, arguments) == 0
        scores.append([row.split("\t")[1] for row in capsys.readouterr().out.splitlines()])
    assert scores[2] == scores[3]
    assert scores[0] != scores[2] != scores[1]
    by_logs = [*arguments, "--ensemble", "log_probabilities"]
    assert run_command(generate.main, by_logs) == 0
    by_logs_scores = [row.split("\t")[1] for row in capsys.readouterr().out.splitlines()]
    assert by_logs_scores != scores[2]
    assert run_command(generate.main, ["the_run", "strange_run"]) == EXIT_USER_ERROR
    assert "strange_run: has another vocabulary than the_run" in capsys.readouterr().err


def test_a_failed_run_is_resumed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever is done is not searched again, and another text is not mixed with it."""
    files = ["--input", folder / "in", "--output", folder / "out", "--max-sentences", 1]
    assert call(*files) == 0
    expected = (folder / "out").read_text()
    (folder / "out").unlink()
    searched: list[int] = []
    encode = TableModel.encode

    def encode_few(model: TableModel, source: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        searched.append(source.size(1))
        if len(searched) == 2:
            raise UserError("no more")
        return encode(model, source, mask)

    monkeypatch.setattr(TableModel, "encode", encode_few)
    assert call(*files) == EXIT_USER_ERROR
    assert not (folder / "out").exists()
    text = (folder / "in").read_text()
    (folder / "in").write_text(text.replace("w4", "w5"))
    capsys.readouterr()
    assert call(*files, "--resume") == EXIT_USER_ERROR
    assert "was begun with another input (" in capsys.readouterr().err
    (folder / "in").write_text(text)
    assert call(*files, "--resume", "--max-sentences", 2) == 0
    assert (folder / "out").read_text() == expected
    assert searched[2:] == [3, 2]  # of the batches (4, 3) and (2) all but the longest sentence
    assert "translated 2 sentences" in capsys.readouterr().err
    assert not (folder / "out.partial").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--beam", "0"], "error: --beam: should be at least 1, not"),
        (["--beam", "many"], "error: --beam: should be a whole number, not 'many'"),
        (["--input", "nowhere"], "nowhere: no such file"),
        (["--input", "in", "--reference", "short"], "in has 4 lines but short has 1"),
        (["--reference", "short"], "has 4 lines but short has 1"),
        (["--input", "bad"], "bad: line 2: invalid UTF-8"),
        (["--output", "missing/out"], "no such folder missing"),
        (["--output", "."], "is a folder"),
        (["--n-best", "2"], "--n-best 2: --format text has one translation per line"),
        (["--n-best", "6", "--format", "tsv"], "the search keeps 5 hypotheses; raise --beam"),
        (["--n-best", "0"], "--n-best 0: at least 1"),
        (["--unk-penalty", "-1"], "error: --unk-penalty: should be"),
        (["--sampling", "maybe"], "error: --sampling: should be true or false, not 'maybe'"),
        (
            ["--sampling-top-k", "3"],
            "error: --sampling-top-k: has no effect without sampling: true",
        ),
        (
            ["--sampling", "true", "--sampling-top-k", "3", "--sampling-top-p", "0.5"],
            "error: --sampling-top-p: cannot be combined with sampling_top_k",
        ),
        (["--temperature", "0"], "error: --temperature: should be"),
        (["--length-penalty-form", "marian"], "error: --length-penalty-form: should be"),
        (["--device", "abacus"], "--device abacus"),
        (["--expert-parallel", "2"], "--expert-parallel 2"),
        (["--resume", "--output", "-"], "--resume: cannot resume standard output"),
        (["--buffer-size", "0", "--input", "-"], "--buffer-size 0: at least 1 line"),
        (["--buffer-size", "5"], "--buffer-size: only works with --input - and without --output"),
        (["--input", "long", "--long-lines", "error"], "line 2: has 12 tokens, the model takes 11"),
        (["--output", "fifo"], "fifo: is a device or a pipe"),
        (["--input", "empty", "--reference", "empty"], "the text is empty"),
        (["--input", "in", "--results", "new"], "--results: there is no score without --reference"),
        (["--input", "in", "--metrics", "ter"], "--metrics: there is no score without --refer"),
        (["--input", "in", "--confidence"], "--confidence: there is no score without --reference"),
        (["--no-stemmer"], "--no-stemmer: only used by rouge"),
        (["--metrics", "rogue"], "no metric 'rogue' (did you mean 'rouge'?)"),
        (["--results", "bad"], "bad: is damaged"),
        (["--results", "ref", "--reference", "ref"], "ref: is also"),
    ],
)
def test_bad_input_gets_one_line(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(folder)
    (folder / "short").write_text("w4\n")
    (folder / "bad").write_bytes(b"w4\nw\xff\n")
    (folder / "empty").write_text("")
    (folder / "long").write_text("w4\n" + "w4 " * 12 + "\n")
    (folder / "out").write_text("old")
    os.mkfifo(folder / "fifo")
    output = [] if "--output" in arguments else ["--output", "out"]
    assert call(*arguments, *output) == EXIT_USER_ERROR
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("ds-seq: error: ") and message in captured.err
    assert (folder / "out").read_text() == "old"
    assert not list(folder.glob("*.partial"))


def test_empty_input_gives_empty_output(folder: Path) -> None:
    (folder / "in").write_text("")
    assert call("--input", folder / "in", "--output", folder / "out") == 0
    assert (folder / "out").read_text() == ""
