"""`ds-seq pseudo-label` for a student with another vocabulary than its teacher."""

from __future__ import annotations

from pathlib import Path

import pytest

from ds_seq.config.generation import GenerationConfig
from ds_seq.config.load import dump
from ds_seq.data.batch import pad_rows
from ds_seq.data.shards import ShardReader, ShardWriter
from ds_seq.generation.build import build_search
from ds_seq.runs.open import load_run
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from tests.data.toy import toy_pairs
from tests.data.vocabulary import train_vocab
from tests.unit.commands.test_pseudo_labels import MAX_POSITIONS, lab, label, pairs
from tests.unit.runs.made import experiment

__all__ = ["lab"]


@pytest.fixture(scope="module")
def student(lab: Path) -> Path:
    """Shards ``train`` with a vocabulary of the student's own, and its experiment."""
    folder = lab / "student"
    folder.mkdir()
    vocab = train_vocab([lab / "text"], folder / "vocab.model", 130, user_symbols=["<2de>"])
    options = {"vocab_hash": vocab.fingerprint, "vocab_size": len(vocab), "languages": ("en", "de")}
    with ShardWriter(folder, "train", shard_size=11, **options) as writer:  # type: ignore[arg-type]
        for number, texts in enumerate(toy_pairs(14, 5)):
            source, target = map(vocab.encode, texts)
            tag = vocab.encode("<2de>")[-1:] if number % 2 else []
            writer.add([*tag, *source, vocab.symbols.eos], [*target, vocab.symbols.eos])
    section = {"vocab": {"size": len(vocab), "user_symbols": ["<2de>"]}}
    path = lab / "student.yaml"
    path.write_text(dump(experiment({"max_positions": MAX_POSITIONS}, **section)), encoding="utf-8")
    return path


def _expected(lab: Path) -> list[tuple[list[int], list[int]]]:
    """One by one: text, the teacher's search, text, the student's ids."""
    run = load_run(lab / "run", "best")
    own = SentencePieceTokenizer.load(lab / "student" / "vocab.model")
    settings = GenerationConfig(beam=3, max_len_a=0, max_len_b=9)
    search = build_search(settings, run.tokenizers.symbols, MAX_POSITIONS)
    made = []
    for source, _ in pairs(lab / "student"):
        text = own.decode(source[:-1]).removeprefix("<2de>").strip()
        ids = run.tokenizers.source.symbols.framed(run.tokenizers.source.encode(text))
        (best, *_) = search.search(run.model, *pad_rows([ids], 1))[0]  # type: ignore[arg-type]
        label_text = run.tokenizers.target.decode(best.tokens)
        if label_text:
            made.append((source, [*own.encode(label_text), own.symbols.eos]))
    return made


def test_labels_are_the_teachers_text_in_the_students_ids(
    lab: Path, student: Path, tmp_path: Path
) -> None:
    more = ("--data", lab / "student", "--student", student)
    assert label(lab, tmp_path / "new", *more) == 0
    expected = _expected(lab)
    assert pairs(tmp_path / "new") == expected
    assert len({tuple(target) for _, target in expected}) > len(expected) // 2
    vocab = (lab / "student" / "vocab.model").read_bytes()
    assert (tmp_path / "new" / "vocab.model").read_bytes() == vocab
    reader = ShardReader(tmp_path / "new", "train")
    assert (
        reader.vocab_hash
        == SentencePieceTokenizer.load(lab / "student" / "vocab.model").fingerprint
    )


def test_filters_compare_text_with_the_students_references(
    lab: Path, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--data", lab / "student", "--student", student, "--min-chrf", "99", "--original", "1")
    assert label(lab, tmp_path / "new", *more) == 0
    assert pairs(tmp_path / "new") == pairs(lab / "student")
    assert "--min-chrf" in capsys.readouterr().out


def test_without_the_students_experiment_or_with_another_one_it_is_refused(
    lab: Path, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert label(lab, tmp_path / "new", "--data", lab / "student") == 2
    assert "add --student EXPERIMENT" in capsys.readouterr().err
    assert label(lab, tmp_path / "new", "--data", lab / "student", "--student", "none.yaml") == 2
    assert "none.yaml" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
