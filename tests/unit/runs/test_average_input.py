"""What ``ds-seq average`` refuses: one line, exit code 2, and nothing is left."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ds_seq.errors import UserError
from ds_seq.models import build_model
from ds_seq.runs.average import average
from ds_seq.runs.export import export
from ds_seq.runs.open import open_run
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.text.tokenizer import Tokenizers
from tests.data.vocabulary import train_vocab
from tests.unit.runs.averaged import (
    BIAS,
    MOE,
    average_command,
    checkpoint,
    make_states,
    write_states,
)
from tests.unit.runs.made import experiment, write_run


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, vocab: SentencePieceTokenizer) -> Path:
    """A run folder with three checkpoints; not to be changed."""
    config = experiment({"moe": MOE})
    folder = tmp_path_factory.mktemp("made") / "run"
    return write_states(folder, config, vocab, make_states(config, vocab))


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(original, tmp_path / "run"))


def test_more_than_are_kept(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, words in (
        (("--last", 4), "has kept 3 of its most recent checkpoints, not 4"),
        (("--best", 5), "has kept 3 of its best checkpoints, not 5"),
        (("--last", 2, "--until", 19), "1 of its most recent checkpoints up to update 19, not 2"),
    ):
        assert average_command(original, *options, "--out", tmp_path / "out") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line and "train.keep_last and train.keep_best" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--last", "0"), "--last 0: must be at least 1"),
        (("--best", "-1"), "--best -1: must be at least 1"),
        ((), "is a run folder; add --last N or --best N"),
        (("--until", "3"), "--until: needs --last N or --best N"),
        (("RUN", "--last", "2"), "--last: takes the checkpoints of one run folder, not of 2"),
        (("nowhere",), "nowhere: no such run folder or exported file"),
        (("RUN/checkpoints",), "not a run folder (config.yaml is missing)"),
        (("RUN/config.yaml",), "neither a run folder nor a file that `ds-seq export` made"),
    ],
)
def test_what_cannot_be_meant(
    original: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    words: str,
) -> None:
    arguments = [option.replace("RUN", str(original)) for option in options]
    assert average_command(original, *arguments, "--out", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ds-seq: error: ") and words in line
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.safetensors"
    out.write_text("what was there")
    assert average_command(original, "--last", 2, "--out", out) == 2
    assert "exists already" in capsys.readouterr().err and out.read_text() == "what was there"
    # before anything is read
    assert average_command("nowhere", "--out", out) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["export", "nowhere"])
def test_only_runs_have_a_last_checkpoint(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    export(original, tmp_path / "export", "best")
    assert average_command(tmp_path / name, "--last", 1, "--out", tmp_path / "out") == 2
    assert f"{name}: not a run folder with checkpoints" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"last": []}',
        '{"last": [{"score": 1}], "best": []}',
        '{"last": [{"name": "one"}], "best": []}',
        '{"last": [{"name": 1}], "best": []}',
        '{"last": [{"name": "update_1", "score": "a"}], "best": []}',
    ],
)
def test_a_damaged_index(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    (run / "checkpoints" / "index.json").write_text(content)
    assert average_command(run, "--last", 1, "--out", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "index.json: is damaged" in line and "name the checkpoints themselves" in line
    # which is what the advice says, and possible
    assert average_command(checkpoint(run, 10), "--out", tmp_path / "out") == 0
    assert capsys.readouterr().out.splitlines()[0] == str(checkpoint(run, 10))


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"moe": MOE, "num_heads": 4}, "model.num_heads is 4, but 2 in "),
        ({"moe": MOE, "d_model": 32}, "model.d_model is 32, but 16 in "),
        ({}, "model.moe is null, but given in "),
        (
            {"moe": {**MOE, "bias_rate": 0.5}},
            "model.moe.bias_rate is 0.5, but 0.001 in ",
        ),
    ],
)
def test_other_models_are_refused_by_name(
    original: Path,
    vocab: SentencePieceTokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    section: dict[str, object],
    words: str,
) -> None:
    other = experiment(section)
    model = build_model(other.model, len(vocab), 1, 0, seed=1)
    write_run(tmp_path / "other", other, vocab, {5: model})
    assert average_command(original, tmp_path / "other", "--out", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{checkpoint(tmp_path / 'other', 5)}: {words}{checkpoint(original, 20)}; " in line
    assert not (tmp_path / "out").exists()


def test_another_vocabulary_is_refused(original: Path, text: Path, tmp_path: Path) -> None:
    stored = open_run(original, "best")
    texts, file = [text / "train.en", text / "train.de"], tmp_path / "vocab.model"
    other = train_vocab(texts, file, stored.tokenizers.size, user_symbols=["<2de>"])
    assert len(other) == stored.tokenizers.size
    card = replace(stored.card, tokenizers=Tokenizers.shared(other))
    with pytest.raises(
        UserError, match=f"has vocabulary {other.fingerprint[:12]}, but .*same vocabulary"
    ):
        average([stored, replace(stored, card=card)])


def _foreign(tensors: dict[str, Tensor]) -> None:
    tensors["other"] = torch.zeros(1)


def _missing(tensors: dict[str, Tensor]) -> None:
    del tensors["encoder.layers.0.feed_forward.up.weight"]


def _fifth_expert(tensors: dict[str, Tensor]) -> None:
    name = "encoder.layers.1.feed_forward.experts.w1"
    tensors[name] = torch.cat([tensors[name], tensors[name][:1]])


def _misshapen(tensors: dict[str, Tensor]) -> None:
    tensors[BIAS] = tensors[BIAS].float()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_foreign, "has 'other', which the model of its experiment lacks"),
        (_missing, "has no tensor 'encoder.layers.0.feed_forward.up.weight'"),
        (_fifth_expert, "experts.w1 has 5 experts, its experiment says 4"),
        (_misshapen, "bias_steps holds torch.float32, the model expects torch.int64"),
    ],
)
def test_a_file_that_is_not_what_its_experiment_says(
    original: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[dict[str, Tensor]], None],
    words: str,
) -> None:
    file = tmp_path / "damaged.safetensors"
    export(original, file, "best")
    with safe_open(str(file), framework="pt") as stored:
        header = stored.metadata()
    tensors = load_file(file)
    damage(tensors)
    save_file(tensors, str(file), metadata=header)
    assert average_command(original, file, "--out", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(file) in line and words in line
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_truncated_checkpoint_leaves_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = checkpoint(run, 30) / "weights.0.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    assert average_command(run, "--last", 2, "--out", tmp_path / "out.safetensors") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{file}: " in line and "truncated" in line
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_checkpoint_needs_its_run_folder(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = tmp_path / "checkpoints" / "update_00000010"
    shutil.copytree(checkpoint(original, 10), alone)
    assert average_command(alone, "--out", tmp_path / "out") == 2
    assert f"{alone}: a checkpoint outside its run folder" in capsys.readouterr().err
