"""`ds-seq rescore`: scores of given translations, files and messages; a small untrained model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from ds_seq.commands.rescore import main
from ds_seq.errors import EXIT_USER_ERROR, run_command
from ds_seq.models import build_model
from ds_seq.runs.open import load_run
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from tests.batches import inputs_of
from tests.data.toy import toy_pairs, write_toy
from tests.data.vocabulary import train_vocab
from tests.unit.runs.made import experiment, write_run

PAIRS = toy_pairs(12, seed=8)
MAX_POSITIONS = 60


def write_lab(folder: Path) -> None:
    """Runs ``dense`` and ``moe``, texts ``src`` and ``tgt``; lines 3 to 5 are partly empty."""
    write_toy(folder, 200, 10)
    vocab = train_vocab([folder / "train.en", folder / "train.de"], folder / "m", 130)
    for name, moe in (("dense", None), ("moe", {"num_experts": 4, "top_k": 2})):
        config = experiment({"moe": moe, "max_positions": MAX_POSITIONS})
        model = build_model(config.model, len(vocab), 1, 0, seed=3)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.7)
        write_run(folder / name, config, vocab, {10: model})
    for side, name in enumerate(("src", "tgt")):
        lines = [pair[side] for pair in PAIRS]
        lines[2] = ""
        lines[3] = ["  a   house \u263a", ""][side]
        lines[4] = ["", "das Haus"][side]
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    write_lab(folder)
    return folder


def call(run: Path, *arguments: object) -> int:
    return run_command(main, [str(argument) for argument in (run, *arguments)])


def texts(lab: Path) -> list[object]:
    return ["--source", lab / "src", "--hypotheses", lab / "tgt"]


def expected(lab: Path, name: str) -> list[list[float]]:
    """Log-probabilities by a whole forward pass of each pair alone."""
    run = load_run(lab / name, "best")
    found = []
    sides = [(lab / side).read_text().splitlines() for side in ("src", "tgt")]
    for row in zip(*sides, strict=True):
        source, target = (run.tokenizers.source.encode(" ".join(text.split())) for text in row)
        if not source and not target:
            found.append([])
            continue
        tgt_in = torch.tensor([[run.tokenizers.symbols.eos, *target]])
        logits = run.model(
            inputs_of(torch.tensor([[*source, run.tokenizers.symbols.eos]]), tgt_in)
        ).logits
        scores = logits.double().log_softmax(-1)
        found.append(
            [float(scores[n, t]) for n, t in enumerate([*target, run.tokenizers.symbols.eos])]
        )
    return found


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_scores_are_sums_of_log_probabilities_over_the_penalty(
    lab: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, wanted = tmp_path / "out", expected(lab, name)
    options = ["--output", out, "--format", "jsonl", "--max-sentences", 5]
    assert call(lab / name, *texts(lab), *options) == 0
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [answer["line"] for answer in answers] == [*range(1, 13)]
    vocab = SentencePieceTokenizer.load(lab / "m")
    for answer, scores, text in zip(
        answers, wanted, (lab / "tgt").read_text().splitlines(), strict=True
    ):
        (hypothesis,) = answer["hypotheses"]
        assert hypothesis["token_scores"] == pytest.approx(scores, abs=1e-4)
        mean = sum(scores) / max(len(scores), 1)
        assert hypothesis["score"] == pytest.approx(mean, abs=1e-4)
        assert hypothesis["text"] == vocab.decode(vocab.encode(text))
    assert len(wanted[2]) == 0 and len(wanted[3]) == 1 < len(wanted[4])
    printed = capsys.readouterr().err
    flat = [score for scores in wanted for score in scores]
    assert "scored 12 translations in" in printed and f"{len(flat)} pieces" in printed
    perplexity = float(printed.rsplit("perplexity ", 1)[1])
    assert perplexity == pytest.approx(math.exp(-sum(flat) / len(flat)), rel=1e-3)


def test_options_of_the_score(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = expected(lab, "dense")
    for options, divisor in (
        ([], lambda n: n),
        (["--length-penalty", 0], lambda n: 1),
        (["--length-penalty", 2, "--length-penalty-form", "gnmt"], lambda n: ((5 + n) / 6) ** 2),
    ):
        assert call(lab / "dense", *texts(lab), *options) == 0
        rows = [row.split("\t") for row in capsys.readouterr().out.splitlines()]
        assert [int(row[0]) for row in rows] == [*range(1, 13)]
        for row, scores in zip(rows, wanted, strict=True):
            total = sum(scores) / divisor(max(len(scores), 1))
            assert float(row[1]) == pytest.approx(total, abs=1e-3)


def test_a_long_source_is_cut_and_reported(
    lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vocab = SentencePieceTokenizer.load(lab / "m")
    text = "\u263a"
    while len(vocab.encode(text)) < MAX_POSITIONS - 1:
        text += "a" if text[-1] == "\u263a" else "\u263a"
    assert vocab.encode(text + "a\u263a")[: MAX_POSITIONS - 1] == vocab.encode(text)
    (tmp_path / "src").write_text(f"a house\n{text}a\u263a\n{text}\n", encoding="utf-8")
    (tmp_path / "tgt").write_text("b\nc\nc\n")
    assert call(lab / "dense", "--source", tmp_path / "src", "--hypotheses", tmp_path / "tgt") == 0
    out, err = capsys.readouterr()
    scores = [row.split("\t")[1] for row in out.splitlines()]
    assert scores[1] == scores[2] != scores[0]
    assert "1 source line(s) longer than the model can take were cut; line(s) 2" in err


def test_lists_of_translations_keep_their_places(
    lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Any number for a line; each scores as it does alone, in the line it has in the file."""
    listed = [(1, "das Haus"), (1, "den  Hund"), (4, ""), (6, "alt"), (6, "alt"), (6, "neu")]
    rows = [f"{line}\t-1.5\t{text}\t0-0 1-1" for line, text in listed]
    (tmp_path / "list").write_text("".join(f"{row}\n" for row in rows))
    files = ["--source", lab / "src", "--hypotheses", tmp_path / "list"]
    assert call(lab / "moe", *files, "--hypotheses-format", "tsv") == 0
    table = [row.split("\t") for row in capsys.readouterr().out.splitlines()]
    assert [int(row[0]) for row in table] == [line for line, _ in listed]
    sources = (lab / "src").read_text().splitlines()
    (tmp_path / "one").write_text("".join(f"{sources[line - 1]}\n" for line, _ in listed))
    (tmp_path / "two").write_text("".join(f"{text}\n" for _, text in listed))
    files = ["--source", tmp_path / "one", "--hypotheses", tmp_path / "two"]
    assert call(lab / "moe", *files) == 0
    alone = [row.split("\t") for row in capsys.readouterr().out.splitlines()]
    for row, other in zip(table, alone, strict=True):
        assert float(row[1]) == pytest.approx(float(other[1]), abs=1e-5)
        assert row[2] == other[2]
    files = ["--source", lab / "src", "--hypotheses", tmp_path / "list", "--format", "jsonl"]
    assert call(lab / "moe", *files, "--hypotheses-format", "tsv") == 0
    answers = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
    assert [(answer["line"], len(answer["hypotheses"])) for answer in answers] == [
        (1, 2),
        (4, 1),
        (6, 3),
    ]
    flat = [hypothesis["score"] for answer in answers for hypothesis in answer["hypotheses"]]
    assert flat == pytest.approx([float(row[1]) for row in table], abs=1e-5)


TSV = ["--source", "src", "--hypotheses-format", "tsv", "--hypotheses"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "src", "--hypotheses", "short"], "has 12 lines but short has 1"),
        (["--source", "src", "--hypotheses", "none"], "none: no such file"),
        (["--source", "-", "--hypotheses", "-"], "only one of them can be standard input"),
        (["--source", "short", "--hypotheses", "long"], "long: line 1: has 160 pieces"),
        (["--source", "short", "--hypotheses", "bad"], "bad: line 1: invalid UTF-8"),
        (["--source", "src", "--hypotheses", "tgt", "--output", "."], "is a folder"),
        (["--source", "src", "--hypotheses", "tgt", "--expert-parallel", "2"], "all experts"),
        (["--source", "src", "--hypotheses", "tgt", "--temperature", "0"], "--temperature: "),
        ([*TSV, "tgt"], "tgt: line 1: must be a line number from 1 to 12"),
        ([*TSV, "beyond"], "beyond: line 2: must be a line number from 1 to 12"),
        ([*TSV, "back"], "back: line 2: line 1 of the source comes after line 2; sort"),
    ],
)
def test_bad_input_gets_one_line(
    lab: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(lab)
    (lab / "short").write_text("a\n")
    (lab / "long").write_text("\u263a a " * 40 + "\n")
    (lab / "bad").write_bytes(b"\xff\n")
    (lab / "beyond").write_text("12\t0\ta\n13\t0\ta\n")
    (lab / "back").write_text("2\t0\ta\n1\t0\ta\n")
    before = sorted(lab.iterdir())
    output = [] if "--output" in arguments else ["--output", "out"]
    assert call(lab / "dense", *arguments, *output) == EXIT_USER_ERROR
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("ds-seq: error: ") and message in captured.err
    assert sorted(lab.iterdir()) == before


def test_further_models_add_their_weighted_scores(
    lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each model's own scores are those that it gives on its own, in the other direction too."""

    def scores(*options: object) -> list[float]:
        assert call(lab / "dense", *options) == 0
        rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
        return [float(row[1]) for row in rows]

    back = scores("--source", lab / "tgt", "--hypotheses", lab / "src")
    both = scores(*texts(lab), "--channel", lab / "dense", "--channel-weight", "0.5")
    sums = [one + 0.5 * other for one, other in zip(scores(*texts(lab)), back, strict=True)]
    assert both == pytest.approx(sums, abs=1e-3)
    assert call(lab / "dense", *texts(lab), "--channel", lab / "dense", "--tune", lab / "tgt") == 0
    assert "--channel-weight 0 --lm-weight 0: BLEU 100.00" in capsys.readouterr().err


def test_further_models_that_do_not_fit(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        ("--lm", lab / "dense"): "is a model of task translation",
        ("--tune", lab / "tgt"): "--tune: there are no weights without --channel or --lm",
        ("--channel", lab / "nothing"): "no such run folder",
    }
    for options, words in cases.items():
        assert call(lab / "dense", *texts(lab), *options) == EXIT_USER_ERROR
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
