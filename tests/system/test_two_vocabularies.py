"""Source and target with vocabularies of their own, through every command."""

from __future__ import annotations

import json
from pathlib import Path

import ctranslate2
import pytest

from ds_seq.cli import main
from ds_seq.runs.open import load_run, open_run
from tests.data.toy import write_toy
from tests.system.forked import train
from tests.system.runs import losses

TINY = "d_model: 16, ffn_dim: 32, num_heads: 2, encoder_layers: 2, decoder_layers: 2"
SIZES = (120, 150)
NAMES = ("vocab.source.model", "vocab.target.model")
_EXPERIMENT = """\
name: run
run_dir: {folder}/run
data:
  source_lang: en
  target_lang: de
  dir: {folder}/data
  raw:
    train: {{source: {folder}/text/train.en, target: {folder}/text/train.de}}
    valid: {{source: {folder}/text/valid.en, target: {folder}/text/valid.de}}
  max_source_length: 64
  max_target_length: 64
  vocab: {{model_type: bpe, source: {{size: 120}}, target: {{size: 150}}}}
model: {{{tiny}, share_embeddings: {shared}, max_positions: 64}}
scheduler: {{name: inverse_sqrt, warmup_updates: 1}}
train: {{max_tokens: 4000, max_updates: 2, log_every: 1, validate_every: 2, tensorboard: false}}
generation: {{beam: 2, max_len_a: 0, max_len_b: 8}}
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an experiment, its data, and its run after two updates and one more."""
    folder = tmp_path_factory.mktemp("lab")
    write_toy(folder / "text", 200, 10)
    content = _EXPERIMENT.format(folder=folder, tiny=TINY, shared="decoder")
    (folder / "x.yaml").write_text(content)
    assert main(["prepare", str(folder / "x.yaml")]) == 0
    for more in ((), ("--resume", "train.max_updates=3", "train.validate_every=3")):
        (done,) = train(folder / "x.yaml", *more)
        assert done.code == 0, done.err
    return folder


def run(lab: Path, *arguments: object) -> None:
    assert main([str(word) for word in arguments]) == 0


def test_each_side_has_its_vocabulary_and_its_embeddings(lab: Path) -> None:
    for folder in (lab / "data", lab / "run"):
        assert all((folder / name).is_file() for name in NAMES)
        assert not (folder / "vocab.model").exists()
    loaded = load_run(lab / "run", "last")
    assert loaded.tokenizers.sizes == SIZES
    source = loaded.seq2seq.source_embedding
    assert source is not None
    tables = (source.weight.shape[0], loaded.seq2seq.target_embedding.weight.shape[0])
    assert tables == SIZES
    assert loaded.tokenizers.source.encode("the man") != loaded.tokenizers.target.encode("the man")


def test_shared_tables_are_refused(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(lab / "x.yaml"), "model.share_embeddings=all"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "model.share_embeddings: all: source and target have vocabularies of their own" in line
    run(lab, "check", lab / "x.yaml")
    assert "with vocabularies of 120 and 150" in capsys.readouterr().out


def test_prepare_repeats_nothing_and_tells_the_sides_apart(
    lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(lab, "prepare", lab / "x.yaml")
    out = capsys.readouterr().out
    assert all(f"vocabulary: {lab}/data/{name} is up to date" in out for name in NAMES)
    (done,) = train(lab / "x.yaml", f"run_dir={tmp_path}", "data.vocab.source.size=119")
    assert done.code == 2 and "data.vocab.source.size: 119, but the train shards" in done.err
    moved = tmp_path / "data"
    moved.mkdir()
    for path in (lab / "data").iterdir():
        if path.is_file():
            (moved / path.name).write_bytes(path.read_bytes())
    for name, other in (NAMES, NAMES[::-1]):
        (moved / name).write_bytes((lab / "data" / other).read_bytes())
    (done,) = train(lab / "x.yaml", f"run_dir={tmp_path / 'no'}", f"data.dir={moved}")
    assert done.code == 2 and "but the vocabulary given is" in done.err


def test_exports_translate_as_the_run_does(lab: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("the man sees two books today\nmy sister\n")
    run(lab, "export", lab / "run", "--out", tmp_path / "one.safetensors")
    run(lab, "export", lab / "run", "--out", tmp_path / "folder")
    run(lab, "average", lab / "run", "--last", 2, "--out", tmp_path / "mean")
    found = []
    for model in (lab / "run", tmp_path / "one.safetensors", tmp_path / "folder"):
        out = tmp_path / "out"
        run(lab, "generate", model, "--input", tmp_path / "text", "--output", out)
        found.append(out.read_text())
    assert found[0] == found[1] == found[2] and found[0].count("\n") == 2
    assert open_run(tmp_path / "mean", "best").tokenizers.sizes == SIZES
    for path in (lab / "run", lab / "data", tmp_path / "folder", tmp_path / "mean"):
        run(lab, "verify", path)


def test_ctranslate2_has_both_vocabularies(lab: Path, tmp_path: Path) -> None:
    run(lab, "export", lab / "run", "--out", tmp_path / "ct2", "--format", "ctranslate2")
    assert all((tmp_path / "ct2" / name).is_file() for name in NAMES)
    loaded = load_run(lab / "run", "best")
    source, target = loaded.tokenizers
    pieces = source.pieces(source.encode("the man sees two books"))
    translator = ctranslate2.Translator(str(tmp_path / "ct2"), intra_threads=1)
    (found,) = translator.translate_batch([pieces], beam_size=1, max_decoding_length=4)
    assert set(found.hypotheses[0]) <= set(target.pieces(range(len(target))))
    words = (tmp_path / "ct2" / "source_vocabulary.json").read_text()
    assert json.loads(words) == source.pieces(range(len(source)))


def test_a_teacher_labels_and_caches(lab: Path, tmp_path: Path) -> None:
    search = ("--beam", 1, "--max-len-a", 0, "--max-len-b", 6)
    arguments = ("--data", lab / "data", "--out", tmp_path / "labels", *search)
    run(lab, "pseudo-label", lab / "run", *arguments)
    assert all((tmp_path / "labels" / name).is_file() for name in NAMES)
    cache = tmp_path / "cache"
    too_many = ("teacher-cache", lab / "run", "--data", lab / "data", "--top-k", 151)
    assert main([str(word) for word in (*too_many, "--out", cache)]) == 2
    run(lab, "teacher-cache", lab / "run", "--data", lab / "data", "--top-k", 3, "--out", cache)
    settings = ("criterion.name=distillation", f"criterion.cache={cache}", "train.max_updates=1")
    (done,) = train(
        lab / "x.yaml", *settings, f"run_dir={tmp_path / 'x'}", "train.validate_every=1"
    )
    assert done.code == 0, done.err


def test_a_smaller_and_an_upcycled_model(lab: Path, tmp_path: Path) -> None:
    student = tmp_path / "student"
    layers = ("--encoder-copy", 0, "--decoder-copy", 1)
    run(lab, "make-student", lab / "run", "--out", student, *layers)
    assert open_run(student, "best").tokenizers.sizes == SIZES
    experts = "model.moe={num_experts: 2, top_k: 1}"
    start = (f"train.init_from={lab / 'run'}", "train.max_updates=1", "train.validate_every=1")
    (done,) = train(lab / "x.yaml", experts, *start, f"run_dir={tmp_path / 'moe'}")
    assert done.code == 0, done.err
    run(lab, "moe-stats", tmp_path / "moe", "--data", lab / "data", "--split", "valid")
    text = (lab / "text" / "valid.en", lab / "text" / "valid.de")
    out = tmp_path / "pruned"
    calibration = ("--calibration", text[0], "--calibration-target", text[1])
    held_out = ("--input", text[0], "--reference", text[1])
    run(lab, "prune-experts", tmp_path / "moe", *calibration, *held_out, "--keep", 1, "--out", out)
    pair = ("--source", text[0], "--hypotheses", text[1])
    run(lab, "rescore", out, *pair, "--output", tmp_path / "scores")
    assert len((tmp_path / "scores").read_text().splitlines()) == 10


def test_fairseqs_files_train_as_the_shards_do(lab: Path, tmp_path: Path) -> None:
    run(lab, "convert-data", lab / "x.yaml", "--to-fairseq", tmp_path / "bin")
    source = f"data.source={{name: fairseq, folders: {tmp_path / 'bin'}}}"
    (done,) = train(lab / "x.yaml", source, f"run_dir={tmp_path / 'run'}")
    assert done.code == 0, done.err
    found, expected = losses(tmp_path / "run"), losses(lab / "run")
    assert list(found) == [1, 2] and found == {update: expected[update] for update in found}
