"""Summarization: a folder of six files, through preparation and training, to ROUGE."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ds_seq.cli import main
from ds_seq.data.shards import ShardReader
from tests.system.forked import train
from tests.system.runs import records

Capture = pytest.CaptureFixture[str]
_EXPERIMENT = """\
name: run
run_dir: {folder}/run
data:
  source_lang: en
  target_lang: en
  dir: {folder}/data
  raw: {folder}/text
  max_source_length: 12
  max_target_length: 30
  long_pairs: truncate_source
  clean: {{preset: summarization}}
  vocab: {{size: 60, model_type: bpe}}
model: {{d_model: 16, ffn_dim: 32, num_heads: 2, encoder_layers: 1, decoder_layers: 1}}
train: {{max_tokens: 400, max_updates: 3, log_every: 1, validate_every: 3, tensorboard: false}}
validation: {{metrics: [rouge1, rougeLsum], best: rouge1}}
generation: {{beam: 2, min_len: 2, max_len_a: 0, max_len_b: 6, no_repeat_ngram: 3}}
"""
_WORDS = "server client library editor game music graphics network parser tools".split()


def _write(folder: Path) -> None:
    folder.mkdir()
    for split, size in (("train", 60), ("val", 8), ("test", 8)):
        rows = [[_WORDS[(n * step) % 10] for step in (3, 7, 9)] for n in range(size)]
        texts = [f"This is a {a} {b}. {n} " + "It is made of parts. " * 9 for n, (a, b, _) in
                 enumerate(rows)]  # fmt: skip
        for end, lines in (("source", texts), ("target", [f"{a} {b}" for a, b, _ in rows])):
            content = "".join(f"{line.strip()}\n" for line in lines)
            (folder / f"{split}.{end}").write_text(content)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the text of a task, its experiment, its shards and its run."""
    folder = tmp_path_factory.mktemp("summaries")
    _write(folder / "text")
    (folder / "x.yaml").write_text(_EXPERIMENT.format(folder=folder))
    assert main(["prepare", str(folder / "x.yaml")]) == 0
    (done,) = train(folder / "x.yaml")
    assert done.code == 0, done.err
    return folder


def test_sources_are_cut_and_no_pair_is_left_out(lab: Path) -> None:
    clean = {path.name for path in (lab / "data" / "clean").iterdir()}
    assert {"train.source", "train.target", "test.source"} <= clean
    assert len((lab / "data" / "clean" / "train.source").read_text().splitlines()) == 60
    (line,) = records(lab / "run", "valid")
    assert 0 <= line["rouge1"] <= 100 and line["rougeLsum"] >= 0 and line["loss"] > 0
    assert "stem:porter" in line["rouge1_signature"]
    index = json.loads((lab / "run" / "checkpoints" / "index.json").read_text())
    assert index["best_by"] == "rouge1" and index["best"][0]["score"] == line["rouge1"]


def test_summaries_have_their_length_and_get_scores(lab: Path, capsys: Capture) -> None:
    out, text = lab / "test.hyp", lab / "text"
    command = ["generate", lab / "run", "--input", text / "test.source", "--output", out]
    assert main([str(word) for word in command]) == 0
    summaries = out.read_text().splitlines()
    assert len(summaries) == 8 and all(summaries)
    assert "longer than the model can take were cut" in capsys.readouterr().err
    command = ["score", str(out), str(text / "test.target"), "--target-lang", "en", "--metrics",
               "rouge1", "rouge2", "rougeL", "rougeLsum", "--confidence", "--json"]  # fmt: skip
    assert main([*command, "--samples", "10"]) == 0
    scores = json.loads(capsys.readouterr().out)["systems"][0]["scores"]
    assert list(scores) == ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    assert all(score["ci"] is not None for score in scores.values())


def test_labels_come_from_cut_sources_and_keep_whole_ones(lab: Path, capsys: Capture) -> None:
    labels = lab / "labels"
    assert main([str(word) for word in ("pseudo-label", lab / "run", "--data", lab / "data",
                                        "--out", labels, "--beam", "1")]) == 0  # fmt: skip
    report = capsys.readouterr().out
    assert "train: 60 labels of 60 sentences" in report and "left out" not in report
    lengths = [ShardReader(folder, "train").lengths for folder in (labels, lab / "data")]
    assert lengths[0][:, 0].max() == lengths[1][:, 0].max() > 12
