"""Denoising of either side of pairs: the same batches at any layout and after any resume."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.load import read_experiment
from ds_seq.data.batch import Batch
from ds_seq.data.binarize import binarize
from ds_seq.data.stream import BatchStream
from ds_seq.distributed import World
from ds_seq.errors import UserError
from ds_seq.tasks import build_task
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.text.tokenizer import Tokenizers
from ds_seq.training.inputs import train_batches, valid_batches
from tests.data.toy import write_toy
from tests.data.vocabulary import train_vocab

MASKED = {"name": "masked_language_modeling", "side": "both"}
SYMBOLS = ["<mask>", "<extra_id_0>", "<extra_id_1>"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a vocabulary and shards; not to be written to."""
    folder = tmp_path_factory.mktemp("text")
    write_toy(folder, 200, 20)
    files = [folder / "train.en", folder / "train.de"]
    vocab = train_vocab(files, folder / "vocab.model", 130, control_symbols=SYMBOLS)
    for split in ("train", "valid"):
        sides = folder / f"{split}.en", folder / f"{split}.de"
        shared, pair = Tokenizers.shared(vocab), ("en", "de")
        binarize(shared, *sides, folder, split, languages=pair, shard_size=150)
        binarize(
            shared, sides[0], None, folder / "one", split, languages=("en", "en"), shard_size=150
        )
    shutil.copy(folder / "vocab.model", folder / "one")
    return folder


def experiment(
    folder: Path, vocab: Any = None, language: str | None = None, **sections: Any
) -> ExperimentConfig:
    vocab = {"size": 130, "mask": True, "sentinels": 2} if vocab is None else vocab
    languages = {"source_lang": "en", "target_lang": "de"}
    section: dict[str, Any] = {"dir": str(folder), "vocab": vocab}
    section |= languages if language is None else {"language": language}
    return read_experiment(
        {
            "name": "x",
            "data": section,
            "task": {"name": "denoising", "side": "both"},
            "train": {"max_tokens": 400, "accumulate": 2},
            "validation": {"metrics": ["accuracy"], "best": "accuracy"},
            **sections,
        }
    )


def _digest(batch: Batch) -> str:
    values = [batch.indices, batch.labels, *batch.inputs]
    parts = [each.numpy().tobytes() for each in values if isinstance(each, torch.Tensor)]
    return hashlib.sha256(b"|".join(parts)).hexdigest()


def _stream(config: ExperimentConfig, rank: int = 0, size: int = 1) -> BatchStream:
    task = build_task(config.task, config.data)
    return train_batches(config, task, task.dataset("train"), World(rank, size), None)


LAYOUTS: dict[str, dict[str, Any]] = {
    "bart": {"task": {"name": "denoising", "side": "both"}},
    "t5": {"task": {"name": "denoising", "side": "both", "noise": "t5"}},
    "masked": {"task": MASKED, "model": {"name": "encoder_only"}},
    "blocks": {
        "task": {"name": "denoising", "noise": "mbart", "block_tokens": 60},
        "language": "en",
    },
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_ranks_and_resumes_change_no_byte_of_a_batch(data: Path, case: str) -> None:
    layout = LAYOUTS[case]
    data = data / "one" if "language" in layout else data
    config = experiment(data, **layout)
    stream = _stream(config)
    updates = stream.updates_per_epoch + 2  # into the second epoch
    alone = [_digest(next(stream)) for _ in range(2 * updates)]
    assert len(set(alone)) > len(alone) - 2  # but for empty batches, each is another one
    one_each = experiment(data, **layout, train={"max_tokens": 400, "accumulate": 1})
    with _stream(one_each, 0, 2) as first, _stream(one_each, 1, 2) as second:
        both = [_digest(next(each)) for _ in range(updates) for each in (first, second)]
    assert sorted(both) == sorted(alone)
    assert [set(both[n : n + 2]) for n in range(0, len(both), 2)] == [
        set(alone[n : n + 2]) for n in range(0, len(alone), 2)
    ]
    started, resumed = _stream(config), _stream(config)
    for _ in range(2 * (updates - 3)):
        next(started)
    resumed.load_state_dict(started.state_dict())
    assert [_digest(next(resumed)) for _ in range(6)] == alone[-6:]


def test_each_epoch_has_other_noise_and_each_validation_the_same(data: Path) -> None:
    config = experiment(data)
    task = build_task(config.task, config.data)
    stream = _stream(config)
    size = 2 * stream.updates_per_epoch

    def sources() -> list[bytes]:
        rows: list[tuple[int, bytes, bytes]] = []
        for batch in (next(stream) for _ in range(size)):
            labels = [row[mask] for row, mask in zip(batch.labels, batch.mask, strict=True)]
            inputs = batch.inputs
            both = zip(batch.indices.tolist(), inputs.source, inputs.source_mask, labels)  # noqa: B905
            rows += [(n, row[m].numpy().tobytes(), t.numpy().tobytes()) for n, row, m, t in both]
        return [row for _, row, _ in sorted(rows, key=lambda row: (row[0], row[2]))]

    first, second = sources(), sources()
    assert len(first) == len(second) == len(task.dataset("train")) == 400
    assert sum(a != b for a, b in zip(first, second, strict=True)) > 200
    valid = [
        [_digest(b) for b in valid_batches(config, task, task.dataset("valid"), World())]
        for _ in range(2)
    ]
    assert valid[0] == valid[1]


@pytest.mark.parametrize("side", ["source", "target", "both"])
def test_the_target_is_the_text_of_the_side(data: Path, side: str) -> None:
    config = experiment(data, task={"name": "denoising", "side": side})
    task = build_task(config.task, config.data)
    dataset = task.dataset("train")
    batch = task.collate(dataset, np.arange(len(dataset)))
    tokenizer = SentencePieceTokenizer.load(data / "vocab.model")
    sides = {"source": ["en"], "target": ["de"], "both": ["en", "de"]}[side]
    lines = [line for end in sides for line in (data / f"train.{end}").read_text().splitlines()]
    labels = zip(batch.labels, batch.mask, strict=True)
    assert [tokenizer.decode(row[mask].tolist()) for row, mask in labels] == lines
    mask = tokenizer.pieces(range(len(tokenizer))).index("<mask>")
    assert (batch.inputs.source == mask).any() and not (batch.labels == mask).any()
    assert (batch.inputs.source_mask.sum(1) <= batch.mask.sum(1)).all()


def test_blocks_of_lines_are_denoised_with_the_ends_of_lines_in_them(data: Path) -> None:
    task_section = {"name": "denoising", "block_tokens": 60, "random_start": False}
    config = experiment(data / "one", language="en", task=task_section)
    task = build_task(config.task, config.data)
    dataset = task.dataset("train")
    batch = task.collate(dataset, np.arange(len(dataset)))
    assert batch.labels.shape[1] <= 60 and int(batch.mask.sum(1).max()) >= 59
    tokenizer = SentencePieceTokenizer.load(data / "vocab.model")
    eos = tokenizer.symbols.eos
    rows = [row[mask].tolist() for row, mask in zip(batch.labels, batch.mask, strict=True)]
    assert all(row[-1] == eos for row in rows) and sum(row[:-1].count(eos) for row in rows) > 50
    lines = (data / "train.en").read_text().splitlines()
    # the end of a block within a line is an end symbol more
    joined = "".join(tokenizer.decode(row) for row in rows).replace(" ", "")
    assert joined == "".join(lines).replace(" ", "")


def test_masked_tokens_are_the_labels(data: Path) -> None:
    config = experiment(data, task=MASKED, model={"name": "encoder_only"})
    task = build_task(config.task, config.data)
    dataset = task.dataset("train")
    batch = task.collate(dataset, np.arange(len(dataset)))
    tokens, real, scored, num_scored, num_real, _ = batch.inputs
    assert num_scored == batch.num_tokens == int(scored.sum()) and num_real == int(real.sum())
    assert 0.12 < num_scored / num_real < 0.25 and bool((scored.sum(1) >= 1).all())
    assert not (scored & ~real).any() and not (scored & (batch.labels == 2)).any()
    assert torch.equal(tokens[real & ~scored], batch.labels[real & ~scored])
    mask = SentencePieceTokenizer.load(data / "vocab.model").pieces(range(130)).index("<mask>")
    assert 0.7 < float((tokens[scored] == mask).float().mean()) < 0.9


def test_no_text_becomes_a_symbol_of_the_noise(data: Path) -> None:
    tokenizer = SentencePieceTokenizer.load(data / "vocab.model")
    ids = tokenizer.encode("w1 <mask> <extra_id_0> w2")
    assert not set(ids) & tokenizer.special_ids
    assert len(tokenizer.special_ids) == 3 + len(SYMBOLS)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no side": ({"task": {"name": "denoising"}}, r"task\.side: null, but the data has pairs"),
    "no mask": (
        {"vocab": {"size": 130}},
        r"data\.vocab\.mask: false, but task denoising needs <m",
    ),
    "no spans": (
        {"task": {"name": "denoising", "side": "source", "noise": "t5"}, "vocab": {"size": 130}},
        r"data\.vocab\.sentinels: 0, but the noise t5 needs symbols such as <extra_id_0>; set 100",
    ),
    "no noise": (
        {"task": {"name": "denoising", "noise": {"infill": 0.0, "permute_sentences": 0.0}}},
        r"task\.noise\.infill: all noises are 0",
    ),
    "metric": (
        {"validation": {"metrics": ["bleu"], "best": "bleu"}},
        r"validation\.metrics: no metric 'bleu'; there are accuracy, perplexity; the task",
    ),
    "text of one side": (
        {"language": "en", "task": {"name": "denoising", "side": "both"}},
        r"task\.side: both, but data\.language has text of one side; set it to null",
    ),
    "no decoder": (
        {"model": {"name": "encoder_only"}},
        r"model\.name: encoder_only cannot learn this task; use transformer",
    ),
    "no encoder": (
        {"task": MASKED, "model": {"name": "decoder_only"}},
        r"model\.name: decoder_only sees no token behind a hidden one; use encoder_only",
    ),
    "a decoder": (
        {"task": MASKED},
        r"model\.name: transformer cannot learn this task; use encoder_only",
    ),
    "sees all": (
        {
            "language": "en",
            "task": {"name": "language_modeling"},
            "model": {"name": "encoder_only"},
            "validation": {},
        },
        r"model\.name: encoder_only sees the tokens to predict; use decoder_only",
    ),
    "shares": (
        {"task": {**MASKED, "random_tokens": 0.6, "kept_tokens": 0.5}},
        r"task\.kept_tokens: 0\.5 and random_tokens 0\.6 are more than 1",
    ),
    "two vocabularies": (
        {
            "vocab": {"size": 130, "mask": True, "joint": False},
            "model": {"share_embeddings": "none"},
        },
        r"data\.vocab\.joint: false, but both sides of this task are the same text",
    ),
    "symbol in text": ({"vocab": {"user_symbols": ["<mask>"]}}, r"<mask> would be read from text"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_named(case: str) -> None:
    sections, message = BAD[case]
    with pytest.raises(UserError, match=message):
        experiment(Path("data"), **sections)


def test_a_vocabulary_without_a_mask_is_named(tmp_path: Path, data: Path) -> None:
    files = [data / "train.en", data / "train.de"]
    train_vocab(files, tmp_path / "vocab.model", 130)
    config = experiment(tmp_path)
    with pytest.raises(UserError, match=r"the vocabulary has no symbol <mask>; set"):
        build_task(config.task, config.data)
    spans = experiment(tmp_path, task={"name": "denoising", "side": "both", "noise": "t5"})
    with pytest.raises(UserError, match=r"has no symbol <extra_id_0>; set data\.vocab\.sentinels"):
        build_task(spans.task, spans.data)
