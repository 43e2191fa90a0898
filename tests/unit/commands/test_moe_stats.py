"""`ds-seq moe-stats`: tables, languages, picture and messages, on a small untrained model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ds_seq.commands.calibration import MeasuredPairs, measured_pairs
from ds_seq.commands.moe_stats import languages, main
from ds_seq.data.binarize import binarize
from ds_seq.data.manifest import CorpusRecord
from ds_seq.data.shards import ShardReader
from ds_seq.errors import EXIT_USER_ERROR, run_command
from ds_seq.models import build_model
from ds_seq.runs.open import open_run
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.text.tokenizer import Tokenizers
from tests.batches import inputs_of
from tests.data.toy import toy_pairs
from tests.data.vocabulary import train_vocab
from tests.unit.runs.made import experiment, write_run
from tests.values import SHARD_SIZE

TAGS = ["<2de>", "<2xx>", "<2yy>"]
CODES = ("de", "yy")
LIMITS = {"max_source_length": 90, "max_target_length": 90}
MOE = {"num_experts": [3, 5], "router": "softmax", "top_k": 2}


def make_shards(
    folder: Path,
    vocab: SentencePieceTokenizer,
    sources: list[str],
    corpora: Sequence[CorpusRecord] = (),
) -> Path:
    """A data folder with a split ``valid``."""
    folder.mkdir()
    text = [target for _, target in toy_pairs(len(sources), seed=4)]
    for name, lines in (("src", sources), ("tgt", text)):
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    sides = folder / "src", folder / "tgt"
    binarize(
        Tokenizers.shared(vocab),
        *sides,
        folder,
        "valid",
        languages=("en", "de"),
        shard_size=SHARD_SIZE,
        corpora=corpora,
    )
    return folder


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs ``moe`` and ``dense``; shards ``plain``, and ``tagged`` with two languages and none."""
    folder = tmp_path_factory.mktemp("lab")
    sources = [source for source, _ in toy_pairs(60, seed=4)]
    (folder / "text").write_text("\n".join(sources) + "\n" + "zäöüßKABDFHLMPS\n" * 3)
    vocab = train_vocab([folder / "text"], folder / "vocab.model", 90, user_symbols=TAGS)
    for name, moe in (("moe", MOE), ("dense", None)):
        config = experiment({"moe": moe}, **LIMITS)
        model = build_model(config.model, len(vocab), 1, 0, seed=3)
        write_run(folder / name, config, vocab, {10: model})
    make_shards(folder / "plain", vocab, sources)
    tagged = [("<2de> ", "<2yy> ", "")[min(i % 4, 2)] + line for i, line in enumerate(sources)]
    make_shards(folder / "tagged", vocab, tagged)
    return folder


def call(*arguments: object) -> int:
    return run_command(main, [str(argument) for argument in arguments])


def answer(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert call(*arguments, "--json") == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_long_pairs_are_treated_as_in_the_training(
    lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(lab / "moe", tmp_path / "run")
    file = tmp_path / "run" / "config.yaml"
    text = file.read_text(encoding="utf-8").replace("_length: 90", "_length: 40")
    counts = []
    for rule in ("skip", "truncate"):
        file.write_text(text.replace("long_pairs: skip", f"long_pairs: {rule}"), encoding="utf-8")
        counts.append(answer(capsys, tmp_path / "run", "--data", lab / "plain")["sentences"])
    assert 0 < counts[0] < counts[1] == 60


def test_the_table_names_layers_and_adds_up(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(lab / "moe", "--data", lab / "plain") == 0
    printed = capsys.readouterr().out
    assert "all sentences: 60 sentence pairs" in printed and "<2" not in printed
    rows = [line.split() for line in printed.splitlines() if line.startswith("encoder 1")]
    shares, gate = ([float(cell) for cell in row[2:]] for row in rows)
    assert shares[0] == 0.0, "nothing is dropped in evaluation"
    assert len(shares) == 4 and sum(shares[1:]) == pytest.approx(100.0, abs=0.2)
    assert gate[0] == 3, "the experts of this layer"
    assert len(max(printed.splitlines(), key=len)) <= 100


def test_figures_are_those_of_one_forward_over_everything(
    lab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = answer(capsys, lab / "moe", "--data", lab / "plain")
    vocab = SentencePieceTokenizer.load(lab / "vocab.model")
    reader = ShardReader(lab / "plain", "valid")
    config = experiment({"moe": MOE}, **LIMITS)
    model = build_model(config.model, len(vocab), 1, 0, seed=3).eval()
    loads = [torch.zeros(3), torch.zeros(5)]
    for index in range(len(reader)):
        source, target = (torch.from_numpy(side.astype(np.int64))[None] for side in reader[index])
        shifted = torch.cat([torch.tensor([[vocab.symbols.eos]]), target[:, :-1]], dim=1)
        for load, stats in zip(loads, model(inputs_of(source, shifted)).moe_stats, strict=True):
            load += stats.load
    assert [layer["name"] for layer in result["layers"]] == ["encoder 1", "decoder 1"]
    for load, layer in zip(loads, result["layers"], strict=True):
        assert layer["load"] == pytest.approx((load / load.sum()).tolist(), abs=1e-6)
        assert {"dropped", "entropy", "load_cv", "load_balance", "router_z"} <= set(layer)
    assert result["target_tokens"] == sum(len(reader[index][1]) for index in range(len(reader)))


def test_each_language_has_its_table_and_all_together_make_the_whole(
    lab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = answer(capsys, lab / "moe", "--data", lab / "tagged")
    parts = result["languages"]
    counts = {name: part["sentences"] for name, part in parts.items()}
    assert counts == {"<2de>": 15, "<2yy>": 15, "without a tag": 30}
    assert result["target_tokens"] == sum(part["target_tokens"] for part in parts.values())
    vocab, reader = (
        SentencePieceTokenizer.load(lab / "vocab.model"),
        ShardReader(lab / "tagged", "valid"),
    )
    groups = languages(reader, np.arange(len(reader)), vocab)
    for name, part in parts.items():
        assert part["target_tokens"] == reader.lengths[groups[name], 1].sum()
    # layer 1 is the decoder's: its tokens are the target's, two experts for each
    whole = np.zeros(5)
    for part in parts.values():
        whole += np.array(part["layers"][1]["load"]) * part["target_tokens"]
    assert whole / whole.sum() == pytest.approx(np.array(result["layers"][1]["load"]), abs=1e-6)
    assert parts["<2de>"]["layers"] != parts["<2yy>"]["layers"]


def test_tags_that_training_adds_are_as_good_as_those_in_the_text(
    lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vocab = SentencePieceTokenizer.load(lab / "vocab.model")
    texts = [{"source": "x", "target": f"x.{code}", "languages": ["en", code]} for code in CODES]
    mixed = {"corpora": dict(zip(CODES, texts, strict=True)), "raw": {"valid": texts}}
    tags = {code: f"<2{code}>" for code in CODES}
    symbols = {"vocab": {"user_symbols": TAGS}, "mixing": {"language_tags": tags}}
    config = experiment({"moe": MOE}, **LIMITS, **mixed, **symbols)
    write_run(tmp_path / "run", config, vocab, {10: build_model(config.model, len(vocab), 1, 0, 3)})
    plain = [source for source, _ in toy_pairs(60, seed=4)]
    written = [f"<2{CODES[number // 30]}> {line}" for number, line in enumerate(plain)]
    records = [
        CorpusRecord(f"valid-{number + 1}", 30 * number, 30, ("en", code))
        for number, code in enumerate(CODES)
    ]
    make_shards(tmp_path / "mixed", vocab, plain, records)
    make_shards(tmp_path / "written", vocab, written)
    found = answer(capsys, tmp_path / "run", "--data", tmp_path / "mixed")
    assert found["languages"].keys() == set(tags.values())
    assert found == answer(capsys, lab / "moe", "--data", tmp_path / "written") | {
        "checkpoint": found["checkpoint"]
    }
    sources = [_measured(tmp_path / "run", tmp_path / name) for name in ("mixed", "written")]
    assert sources[0] == sources[1]


def _measured(run: Path, data: Path) -> list[list[int]]:
    """The sources by which experts are measured that are to be merged."""
    measured = MeasuredPairs(data, "valid", 10**6)
    stored = open_run(run, "best")
    dataset, pairs = measured_pairs(measured, run, stored)
    batch = dataset.collate(pairs, stored.tokenizers.source.symbols)
    return batch.inputs.source.tolist()


def test_sentences_are_sorted_by_the_tag_that_opens_them(lab: Path) -> None:
    vocab, reader = (
        SentencePieceTokenizer.load(lab / "vocab.model"),
        ShardReader(lab / "tagged", "valid"),
    )
    rows = np.arange(1, len(reader))  # as where a sentence too long was left out
    groups = languages(reader, rows, vocab)
    assert sorted(np.concatenate(list(groups.values()))) == list(range(len(rows)))
    for tag, places in groups.items():
        found = {vocab.pieces(reader[int(rows[place])][0][:1])[0] for place in places}
        if tag == "without a tag":
            assert not found & set(TAGS)
        else:
            assert found == {tag}


def test_the_picture_has_a_map_for_each_language(lab: Path, tmp_path: Path) -> None:
    sizes = []
    for data in ("plain", "tagged"):
        assert call(lab / "moe", "--data", lab / data, "--out", tmp_path / f"{data}.png") == 0
        with Image.open(tmp_path / f"{data}.png") as picture:
            sizes.append(picture.width * picture.height)
    assert sizes[1] > 2.5 * sizes[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain.png", "tagged.png"]


def test_a_few_batches_have_both_short_and_long_sentences(
    lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("vocab.model", "checkpoints"):
        (run / name).symlink_to(lab / "moe" / name)
    config = (lab / "moe" / "config.yaml").read_text()
    assert "_tokens: 4096\n" in config
    config = config.replace("_tokens: 4096\n", "_tokens: 90\n")
    (run / "config.yaml").write_text(config)
    whole = answer(capsys, run, "--data", lab / "plain")
    part = answer(capsys, run, "--data", lab / "plain", "--max-batches", 3)
    assert 0 < part["sentences"] < whole["sentences"] == 60
    lengths = [record["target_tokens"] / record["sentences"] for record in (whole, part)]
    shortest = ShardReader(lab / "plain", "valid").lengths[:, 1].min()
    assert abs(lengths[1] - lengths[0]) < 0.3 * (lengths[0] - shortest)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("dense", "--data", "plain"), "dense: is a dense model"),
        (("nowhere", "--data", "plain"), "nowhere: no such run folder"),
        (("plain", "--data", "plain"), "not a run folder"),
        (("moe", "--data", "nowhere"), "nowhere: no such data folder"),
        (("moe", "--data", "plain", "--split", "test"), "found here: valid"),
        (("moe", "--data", "plain", "--checkpoint", "update_7"), "no checkpoint 'update_7'"),
        (("moe", "--data", "foreign"), "made with vocabulary"),
        (("moe", "--data", "plain", "--out", "a.jpg"), "a name that ends in .png"),
        (("moe", "--data", "plain", "--out", "nowhere/a.png"), "no such folder nowhere"),
        (("moe", "--data", "plain", "--max-batches", "0"), "--max-batches 0"),
    ],
)
def test_mistakes_are_one_line(
    lab: Path,
    arguments: tuple[str, ...],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "foreign" in arguments and not (lab / "foreign").exists():
        sources = [source for source, _ in toy_pairs(60, seed=4)]
        (lab / "other").write_text("\n".join(sources))
        foreign = train_vocab([lab / "other"], lab / "other.model", 60)
        make_shards(lab / "foreign", foreign, sources)
    monkeypatch.chdir(lab)
    assert call(*arguments) == EXIT_USER_ERROR
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1 and words in captured.err
    assert not list(lab.glob("*.jpg"))
