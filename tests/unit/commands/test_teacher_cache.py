"""``ds-seq teacher-cache``: what is written is what the teacher would say now."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from ds_seq import cli
from ds_seq.commands.teacher_cache import main
from ds_seq.config.distillation import DistillationConfig
from ds_seq.config.load import dump
from ds_seq.criterions import build_criterion
from ds_seq.data.batch import Batch, ParallelDataset
from ds_seq.data.binarize import binarize
from ds_seq.data.shards import ShardReader
from ds_seq.data.teacher_cache import TeacherCache
from ds_seq.data.truncation import TruncatedSource
from ds_seq.distill.fill_cache import top_tokens
from ds_seq.distill.teacher import CachedTeacher, LiveTeacher, Loading, load_teacher
from ds_seq.errors import UserError
from ds_seq.models import build_model
from ds_seq.models.output import ModelOutput
from ds_seq.tasks import cut_limits
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.text.tokenizer import Symbols, Tokenizers
from tests.data.toy import write_toy
from tests.data.vocabulary import train_vocab
from tests.faults import contents, kills
from tests.unit.runs.made import experiment, write_run

CPU, TOP_K, PAIRS = torch.device("cpu"), 5, 60


class Lab(NamedTuple):
    folder: Path
    vocab: SentencePieceTokenizer

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def main(self, *arguments: str | Path | int, run: str = "big", top_k: int = TOP_K) -> int:
        fixed = [str(self.folder / run), "--data", str(self.data), "--top-k", str(top_k)]
        return main([*fixed, *map(str, arguments)])

    def dataset(self, folder: Path, split: str = "train") -> ParallelDataset:
        dataset = ParallelDataset(ShardReader(self.data, split))
        dataset.attach(TeacherCache(folder, split, dataset.source))
        return dataset

    def live(self, *names: str) -> LiveTeacher:
        runs = [str(self.folder / name) for name in names]
        loading = Loading("best", None, expert_parallel=1, zero3=False)
        return load_teacher(runs, loading, self.vocab.fingerprint, CPU)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Teachers ``big``, ``moe`` and ``short``, and shards of two splits in ``data``."""
    folder = tmp_path_factory.mktemp("lab")
    write_toy(folder / "text", PAIRS, 10)
    text = folder / "text"
    vocab = train_vocab([text / "train.en", text / "train.de"], folder / "vocab.model", 130)
    for split in ("train", "valid"):
        sides = text / f"{split}.en", text / f"{split}.de"
        binarize(
            Tokenizers.shared(vocab),
            *sides,
            folder / "data",
            split,
            languages=("en", "de"),
            shard_size=25,
        )
    longest = ParallelDataset(ShardReader(folder / "data", "train")).lengths[:, 1].max()
    # learned positions are limited; others are not
    short = {"max_positions": int(longest) - 3, "positions": "learned"}
    models: dict[str, dict[str, Any]] = {
        "big": {},
        "moe": {"moe": {"num_experts": 4}},
        "short": short,
    }
    for seed, (name, more) in enumerate(models.items()):
        config = experiment({"max_positions": 90, **more})
        model = build_model(config.model, len(vocab), 1, 0, seed=seed)
        assert model.output is None, "tied: larger embeddings make opinions that differ"
        model.target_embedding.weight.data *= 4
        write_run(folder / name, config, vocab, {1: model})
    return Lab(folder, vocab)


def batch_of(dataset: ParallelDataset, pairs: list[int]) -> Batch:
    return dataset.collate(pairs, Symbols(pad=1, eos=2, unk=3, start=2))


def kept(batch: Batch) -> tuple[Tensor, Tensor]:
    assert batch.teacher is not None
    return batch.teacher


@pytest.mark.parametrize("names", [["big"], ["big", "moe"]])
@pytest.mark.parametrize("options", [["--part-tokens", "70"], ["--max-tokens", "40"]])
def test_a_cache_holds_what_the_teacher_says(
    lab: Lab, tmp_path: Path, names: list[str], options: list[str]
) -> None:
    others = [str(lab.folder / name) for name in names[1:]]
    arguments = ["--out", str(tmp_path), "--precision", "fp32", *options]
    assert main([str(lab.folder / "big"), *others, "--data", str(lab.data), "--top-k", "5",
                 *arguments]) == 0  # fmt: skip
    teacher = lab.live(*names)
    for split, pairs in (("train", [3, 30, 59, 0, 24, 25]), ("valid", list(range(10)))):
        batch = batch_of(lab.dataset(tmp_path, split), pairs)
        logits = teacher(batch).logits
        assert logits is not None
        scores = logits.log_softmax(1)
        ids, log_probs = kept(batch)
        torch.testing.assert_close(log_probs, scores.topk(TOP_K).values, rtol=0, atol=2e-5)
        torch.testing.assert_close(log_probs, scores.gather(1, ids), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "moments", [(5, 17), pytest.param(range(0, 1000, 2), marks=pytest.mark.slow)]
)
def test_a_cache_whose_making_is_killed_ends_with_the_same_bytes(
    lab: Lab, tmp_path: Path, moments: Iterable[int]
) -> None:
    cache = tmp_path / "cache"

    def work() -> None:
        assert lab.main("--out", cache, "--splits", "valid", "--part-tokens", 60) == 0

    work()
    expected = contents(cache)
    shutil.rmtree(cache)
    for operations in kills(work, moments):
        work()
        assert contents(cache) == expected, operations
        shutil.rmtree(cache)


@pytest.mark.parametrize(("stored", "error"), [("fp32", 1e-6), ("fp16", 1e-3)])
@pytest.mark.parametrize("strategy", ["word_seq_level", "batch_level"])
def test_the_loss_is_that_of_the_live_teacher_cut_to_as_many_tokens(
    lab: Lab, tmp_path: Path, stored: str, error: float, strategy: str
) -> None:
    lab.main("--out", tmp_path, "--precision", stored, "--splits", "train", "--part-tokens", 200)
    dataset = lab.dataset(tmp_path)
    cached = CachedTeacher(TeacherCache(tmp_path, "train", dataset.source))
    batch = batch_of(dataset, [7, 50, 8, 31])
    common = {"strategy": strategy, "temperature": 2.0, "divergence": "js"}
    live = DistillationConfig(teacher="x", top_k=TOP_K, **common)  # type: ignore[arg-type]
    offline = DistillationConfig(cache="x", **common)  # type: ignore[arg-type]
    losses, gradients = [], []
    for config, teacher in ((live, lab.live("big")), (offline, cached)):
        generator = torch.Generator().manual_seed(1)
        logits = torch.randn(batch.num_tokens, len(lab.vocab), generator=generator)
        logits.requires_grad_()
        loss = build_criterion(config, teacher)(ModelOutput(logits, {}, []), batch)
        loss.total.backward()
        losses.append({name: value.item() for name, value in loss.parts.items()})
        gradients.append(logits.grad)
    assert losses[0]["kd"] > 0.1 and losses[1] == pytest.approx(losses[0], rel=error)
    torch.testing.assert_close(*gradients, rtol=0, atol=error)


def test_top_tokens_are_the_same_in_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    from ds_seq.distill import teacher as teacher_module

    logits = torch.randn(7, 11, generator=torch.Generator().manual_seed(2)).bfloat16()
    whole = top_tokens(logits, 4)
    monkeypatch.setattr(teacher_module, "_CPU_NUMBERS", 22)
    for one, other in zip(top_tokens(logits, 4), whole, strict=True):
        assert torch.equal(one, other)
    assert whole.log_probs.dtype == torch.float32
    torch.testing.assert_close(whole.log_probs, logits.float().log_softmax(1).topk(4).values)
    assert top_tokens(torch.zeros(0, 11), 4).ids.shape == (0, 4)


def test_by_default_it_is_next_to_the_shards(
    lab: Lab, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # another data folder with the same shards
    data = tmp_path / "data"
    data.mkdir()
    for path in lab.data.glob("valid.*"):
        (data / path.name).write_bytes(path.read_bytes())
    runs = [str(lab.folder / name) for name in ("big", "moe")]
    assert cli.main(["teacher-cache", *runs, "--data", str(data), "--top-k", "3"]) == 0
    folder = data / "teacher-big+moe-top3"
    tokens = ShardReader(data, "valid").manifest.tgt_tokens
    printed = capsys.readouterr().err
    assert f"criterion.cache={folder}" in printed and f"cached {tokens:,} target tokens" in printed
    assert (folder / "valid.teacher.00000.bin").stat().st_size == tokens * 3 * (2 + 2)
    manifest = json.loads((folder / "valid.teacher.json").read_text())
    assert manifest["top_k"] == 3 and [t["name"] for t in manifest["teachers"]] == runs
    assert not (folder / "train.teacher.json").exists()


def test_what_is_finished_is_not_computed_again(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--out", tmp_path, "--part-tokens", 100, "--splits", "train")
    real, left, asked = LiveTeacher.__call__, [6], [0]

    def dies(self: LiveTeacher, batch: Batch) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        asked[0] += batch.num_tokens
        return real(self, batch)

    monkeypatch.setattr(LiveTeacher, "__call__", dies)
    with pytest.raises(KeyboardInterrupt):
        lab.main(*arguments)
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.bin")}
    assert len(done) == 6 and asked[0] and not (tmp_path / "train.teacher.json").exists()
    left[0] = 1000
    assert lab.main(*arguments) == 0
    # nothing twice: every part here is one batch
    assert asked[0] == ShardReader(lab.data, "train").manifest.tgt_tokens
    assert all(path.stat().st_mtime_ns == time for path, time in done.items())
    left[0], asked[0] = 0, 0
    assert lab.main(*arguments) == 0
    assert "cached 0 target tokens" in capsys.readouterr().err
    whole = tmp_path / "whole"
    left[0] = 1000
    lab.main("--out", whole, "--splits", "train")
    rows = np.arange(PAIRS)
    reader = ShardReader(lab.data, "train")
    resumed, at_once = (TeacherCache(f, "train", reader).gather(rows) for f in (tmp_path, whole))
    assert np.array_equal(resumed[0], at_once[0])
    np.testing.assert_allclose(resumed[1], at_once[1], rtol=2e-3)


def test_a_teacher_trained_again_is_another_one(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its checkpoint may have the same name."""
    config = experiment({"max_positions": 90})
    for seed in (1, 2):
        run = tmp_path / f"{seed}" / "run"
        run.parent.mkdir()
        model = build_model(config.model, len(lab.vocab), 1, 0, seed=seed)
        write_run(run, config, lab.vocab, {1: model})
    arguments = ["--data", str(lab.data), "--top-k", "3", "--splits", "valid"]
    out = ["--out", str(tmp_path / "cache")]
    command = ["teacher-cache", *arguments, *out]
    assert cli.main([*command, str(tmp_path / "1" / "run")]) == 0
    assert cli.main([*command, str(tmp_path / "2" / "run")]) == 2
    assert "other settings (teacher, --checkpoint or --dtype)" in capsys.readouterr().err
    assert cli.main([*command, str(tmp_path / "1" / "run")]) == 0


def test_pairs_that_are_too_long_for_the_teacher_are_left_out(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--splits", "train", "--part-tokens", 30, "--precision", "fp32")
    assert lab.main(*arguments, "--out", tmp_path / "short", run="short") == 0
    printed = capsys.readouterr().err
    reader = ShardReader(lab.data, "train")
    longest = reader.lengths.max(axis=1)
    manifest = TeacherCache(tmp_path / "short", "train", reader).manifest
    assert manifest.left_out == (longest > manifest.max_length).sum() > 0
    assert f"{manifest.left_out} pair(s) of train are longer than the" in printed
    dataset = ParallelDataset(reader, manifest.max_length, manifest.max_length)
    dataset.attach(TeacherCache(tmp_path / "short", "train", reader))
    batch = batch_of(dataset, list(range(len(dataset))))
    logits = lab.live("short")(batch).logits
    assert logits is not None
    ids, log_probs = kept(batch)
    torch.testing.assert_close(log_probs, logits.log_softmax(1).gather(1, ids), rtol=0, atol=2e-5)


def _no_change(lab: Lab, folder: Path) -> None:
    pass


def _file_in_the_way(lab: Lab, folder: Path) -> None:
    folder.write_text("")


@pytest.mark.parametrize(
    ("arguments", "prepare", "message"),
    [
        (["--top-k", "0"], _no_change, "--top-k 0: must be at least 1"),
        (["--top-k", "131"], _no_change, "--top-k 131: the vocabulary has 130 tokens"),
        (["--part-tokens", "0"], _no_change, "--part-tokens 0"),
        (["--splits", "test"], _no_change, "test.manifest.json: no such manifest"),
        (["--data", "/nowhere"], _no_change, "/nowhere: no such data folder"),
        (["--expert-parallel", "2"], _no_change, "--expert-parallel 2: does not divide the 1"),
        (["--device", "qpu"], _no_change, "--device qpu"),
        (["nowhere"], _no_change, "nowhere: no such run folder"),
        ([], _file_in_the_way, "cannot be written"),
    ],
)
def test_errors_are_reported_in_one_line(
    lab: Lab,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    prepare: Callable[[Lab, Path], None],
    message: str,
) -> None:
    prepare(lab, tmp_path / "out")
    usual = ["--data", str(lab.data), "--top-k", "3", "--out", str(tmp_path / "out")]
    assert cli.main(["teacher-cache", str(lab.folder / "big"), *usual, *arguments]) == 2
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 1 and message in printed[0]


def test_long_pairs_are_cut_as_the_student_cuts_them(lab: Lab, tmp_path: Path) -> None:
    """Or as the teacher was trained; a training that cuts otherwise refuses the cache."""
    student = tmp_path / "student.yaml"
    config = experiment({}, long_pairs="truncate", max_source_length=5, max_target_length=4)
    student.write_text(dump(config), encoding="utf-8")
    assert lab.main("--student", student, "--out", tmp_path / "cut") == 0
    shards = ShardReader(lab.data, "train")
    assert shards.lengths.max() > 5
    cut = ParallelDataset(TruncatedSource(shards, cut_limits(config.data)))
    cut.attach(TeacherCache(tmp_path / "cut", "train", cut.source))
    with pytest.raises(UserError, match="was made of sources of at most 5 tokens and targets of"):
        TeacherCache(tmp_path / "cut", "train", shards)
    batch = batch_of(cut, [0, 7, 30, 59])
    assert batch.inputs.source.shape[1] == 5 and batch.labels.shape[1] == 4
    live = lab.live("big")(batch).logits
    assert live is not None
    expected = top_tokens(live, TOP_K)
    torch.testing.assert_close(kept(batch)[1], expected.log_probs, rtol=0, atol=1e-2)
    assert torch.equal(kept(batch)[0][:, 0], expected.ids[:, 0])
    # without --student, the teacher's own experiment counts
    run = tmp_path / "run"
    shutil.copytree(lab.folder / "big", run)
    text = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(
        text.replace("long_pairs: skip", "long_pairs: truncate_source")
    )
    command = ["--data", str(lab.data), "--top-k", str(TOP_K), "--out", str(tmp_path / "own")]
    assert main([str(run), *command]) == 0
    manifest = json.loads((tmp_path / "own" / "train.teacher.json").read_text(encoding="utf-8"))
    assert manifest["cut"] == [8, None]
