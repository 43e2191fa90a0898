"""Alignments, unknown pieces and minimum Bayes risk as options of `ds-seq generate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sacrebleu.metrics.chrf import CHRF

from ds_seq.errors import EXIT_USER_ERROR, run_command
from ds_seq.generate import main
from ds_seq.models import build_model
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from tests.unit.runs.made import experiment, write_run

LINES = ["the old house", "", "a \u263a dog", "seven"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, vocab: SentencePieceTokenizer) -> Path:
    """A model that often says that a piece is unknown."""
    config = experiment({"max_positions": 40})
    model = build_model(config.model, len(vocab), 1, 0, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
        model.target_embedding.weight[vocab.symbols.unk] *= -3
    return write_run(tmp_path_factory.mktemp("made") / "run", config, vocab, {10: model})


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "in"
    file.write_text("".join(f"{line}\n" for line in LINES), encoding="utf-8")
    return file


def output(run: Path, lines: Path, *options: object) -> list[str]:
    out = lines.with_name("out")
    files = ["--input", lines, "--output", out, "--max-len-b", 4]
    assert main([str(word) for word in (run, *files, *options)]) == 0
    return out.read_text(encoding="utf-8").split("\n")[:-1]


def objects(run: Path, lines: Path, *options: object) -> list[list[dict[str, Any]]]:
    rows = output(run, lines, "--format", "jsonl", *options)
    return [json.loads(row)["hypotheses"] for row in rows]


SAMPLED = ("--sampling", "true", "--n-best", 20, "--temperature", 1.5)


def test_alignments_add_and_change_nothing_else(run: Path, lines: Path) -> None:
    plain = objects(run, lines, *SAMPLED)
    aligned = objects(run, lines, *SAMPLED, "--align")
    for line, (before, after) in enumerate(zip(plain, aligned, strict=True)):
        for one, other in zip(before, after, strict=True):
            pairs = [pair.split("-") for pair in other.pop("alignment").split()]
            assert one == other
            assert all(int(seen) < len(LINES[line].split()) for seen, _ in pairs)
            # every word that is not nothing but a space looks at one
            assert {int(word) for _, word in pairs} == {*range(len(one["text"].split()))}


def test_unknown_pieces_give_way_in_every_format(
    run: Path, lines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = objects(run, lines, *SAMPLED)
    copied = objects(run, lines, *SAMPLED, "--replace-unk")
    changed = 0
    for line, (before, after) in enumerate(zip(plain, copied, strict=True)):
        for one, other in zip(before, after, strict=True):
            assert one["token_scores"] == other["token_scores"]
            assert "alignment" not in other
            assert "\u2047" not in other["text"]
            if "\u2047" not in one["text"]:
                assert one["text"] == other["text"]
                continue
            changed += 1
            kept = one["text"].replace("\u2047", " ").split()
            for word in kept:
                assert word in other["text"]
            assert any(word in other["text"] for word in [*LINES[line].split(), "\u263a"])
    assert changed > 10
    table = output(run, lines, *SAMPLED, "--replace-unk", "--format", "tsv")
    assert [row.split("\t")[2] for row in table] == [h["text"] for line in copied for h in line]
    # the text alone, and what is shown and scored of it
    sampled = [*SAMPLED[:2], *SAMPLED[4:]]
    capsys.readouterr()
    best = output(run, lines, *sampled, "--replace-unk", "--samples", 4)
    assert best == [line[0]["text"] for line in copied]
    assert any("\u2047" in line[0]["text"] for line in plain)
    printed = capsys.readouterr().out.split("\n")
    shown = [row for row in printed if row.startswith("translation")]
    assert [row.removeprefix("translation").strip() for row in shown] == best


def test_layers_look_at_different_words(run: Path, lines: Path) -> None:
    first, second, last = (
        output(run, lines, *SAMPLED, "--align", "--format", "fairseq", *layer)
        for layer in (["--align-layer", 1], ["--align-layer", 2], [])
    )
    assert second == last != first
    assert [row for row in first if row[0] != "A"] == [row for row in last if row[0] != "A"]


def test_minimum_risk_takes_the_sample_most_like_the_others(run: Path, lines: Path) -> None:
    options = ("--sampling", "true", "--temperature", 0.5)
    drawn = objects(run, lines, *options, "--n-best", 12)
    chosen = objects(run, lines, *options, "--mbr", "chrf", "--samples-per-line", 12, "--n-best", 3)
    metric = CHRF()
    for samples, found in zip(drawn, chosen, strict=True):
        texts = [sample["text"] for sample in samples]
        if len(texts) == 1:  # the line without text
            assert found == samples
            continue
        utility = {
            text: sum(
                metric.sentence_score(text, [other]).score
                for place, other in enumerate(texts)
                if place != texts.index(text)
            )
            / (len(texts) - 1)
            for text in texts
        }
        best = sorted(utility.values(), reverse=True)[:3]
        assert [one["utility"] for one in found] == pytest.approx(best, abs=1e-9)
        assert [utility[one["text"]] for one in found] == pytest.approx(best, abs=1e-9)
        assert all(one["score"] in [sample["score"] for sample in samples] for one in found)
    assert any(one[0]["text"] != two[0]["text"] for one, two in zip(drawn, chosen, strict=True))
    # sampling follows from the option; text is the best alone
    plain = output(run, lines, "--temperature", 0.5, "--mbr", "chrf", "--samples-per-line", 12)
    assert plain == [found[0]["text"] for found in chosen]


def test_another_choice_cannot_resume(run: Path, lines: Path) -> None:
    """What the options change is part of what an unfinished run was begun with."""
    from ds_seq.commands.after_search import result_conditions
    from ds_seq.commands.arguments.generate import build_parser

    variants: list[list[str]] = [
        [],
        ["--align"],
        ["--align", "--align-layer", "1"],
        ["--replace-unk"],
        ["--mbr", "chrf"],
        ["--mbr", "bleu"],
        ["--mbr", "bleu", "--samples-per-line", "3"],
    ]
    found = [
        result_conditions(build_parser().parse_args(["run", *options])) for options in variants
    ]
    assert all(one not in found[:place] for place, one in enumerate(found))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--align"], "--align: --format text cannot show it"),
        (["--align-layer", "1"], "--align-layer: only affects --align and --replace-unk"),
        (["--replace-unk", "--align-layer", "0"], "layers are counted from 1"),
        (["--replace-unk", "--align-layer", "3"], "--align-layer 3: the decoder has fewer layers"),
        (["--replace-unk", "--expert-parallel", "2"], "alignments need all experts"),
        (["--samples-per-line", "3"], "--samples-per-line: only affects --mbr"),
        (["--mbr", "chrf", "--samples-per-line", "1"], "at least 2 are needed"),
        (["--mbr", "chrf", "--sampling", "false"], "--mbr: chooses among samples"),
        (
            ["--mbr", "chrf", "--samples-per-line", "4", "--format", "tsv", "--n-best", "5"],
            "raise --samples-per-line, which is 4",
        ),
    ],
)
def test_bad_input_gets_one_line(
    run: Path,
    lines: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    files = ["--input", str(lines), "--output", str(tmp_path / "out")]
    assert run_command(main, [str(run), *files, *arguments]) == EXIT_USER_ERROR
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert captured.err.startswith("ds-seq: error: ") and message in captured.err
    assert not list(tmp_path.iterdir())
