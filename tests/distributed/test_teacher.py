"""Teachers spread over ranks say what one process says, live and into a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from ds_seq import distributed
from ds_seq.commands.teacher_cache import main
from ds_seq.config.distillation import DistillationConfig
from ds_seq.data.binarize import binarize
from ds_seq.distill.build import build_teacher
from ds_seq.models.build import build_seq2seq
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.text.tokenizer import Tokenizers
from tests.data.toy import write_toy
from tests.data.vocabulary import train_vocab
from tests.distributed import spine
from tests.distributed.harness import run_distributed
from tests.unit.runs.made import experiment, write_run
from tests.values import SHARD_SIZE

CPU = torch.device("cpu")
TIMEOUT = 60.0
PARTS = ["--part-tokens", "250"]


class Lab(NamedTuple):
    folder: Path
    vocab_hash: str


class Said(NamedTuple):
    logits: list[Tensor]
    whole: int
    """Numbers of the weights that are not cut."""
    cut: int
    """Numbers of this rank's slices of the others."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A teacher ``run`` with experts, and shards in ``data``."""
    folder = tmp_path_factory.mktemp("lab")
    write_toy(folder / "text", 40, 5)
    sides = folder / "text" / "train.en", folder / "text" / "train.de"
    vocab: SentencePieceTokenizer = train_vocab(sides, folder / "vocab.model", 130)
    tokenizers, options = Tokenizers.shared(vocab), {"shard_size": SHARD_SIZE}
    binarize(tokenizers, *sides, folder / "data", "train", languages=("en", "de"), **options)
    config = experiment({"max_positions": 90, "moe": {"num_experts": 4, "capacity_factor": None}})
    model = build_seq2seq(config.model, len(vocab), 1, 0, seed=3)
    write_run(folder / "run", config, vocab, {1: model})
    return Lab(folder, vocab.fingerprint)


def _listen(lab: Lab, more: dict[str, Any]) -> Said:
    """Batches of unequal size, another one on each rank, the last of them empty on one."""
    settings = DistillationConfig(teacher=str(lab.folder / "run"), **more)
    teacher = build_teacher(settings, lab.vocab_hash, CPU, None)
    mine = spine.batches(1, 6)[distributed.rank() :: distributed.world_size()]
    said = [teacher(batch).logits for batch in mine]
    # ZeRO empties a parameter between forwards and keeps its slice next to it
    weights: list[Any] = list(teacher.runs[0].model.parameters())
    whole = sum(weight.numel() for weight in weights)
    cut = sum(weight.ds_tensor.numel() for weight in weights if weight.numel() == 0)
    return Said([logits for logits in said if logits is not None], whole, cut)


@pytest.fixture(scope="module")
def alone(lab: Lab) -> Said:
    """What one process hears."""
    said: Said = run_distributed(_listen, 1, lab, {}, timeout=TIMEOUT)[0]
    return said


@pytest.mark.parametrize("more", [{"teacher_zero3": True}, {"teacher_expert_parallel": 2}])
def test_a_teacher_on_two_ranks_says_what_one_says(
    lab: Lab, alone: Said, more: dict[str, Any]
) -> None:
    first, second = run_distributed(_listen, 2, lab, more, timeout=TIMEOUT)
    together = [x for pair in zip(first.logits, second.logits, strict=True) for x in pair]
    assert len(together) == len(alone.logits) == 6 and len(together[-1]) == 0
    for ours, theirs in zip(together, alone.logits, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    if "teacher_zero3" in more:
        for rank in (first, second):
            assert rank.whole < 0.1 * alone.whole, "vectors"
            assert rank.cut == pytest.approx((alone.whole - rank.whole) / 2, rel=0.01)


def _cache(lab: Lab, out: Path, more: list[str]) -> int:
    arguments = ["--top-k", "4", "--precision", "fp32", "--max-tokens", "200", "--out", str(out)]
    return main([str(lab.folder / "run"), "--data", str(lab.folder / "data"), *arguments, *more])


@pytest.fixture(scope="module")
def written(lab: Lab) -> dict[str, bytes]:
    """The files that one process writes."""
    run_distributed(_cache, 1, lab, lab.folder / "cache", PARTS, timeout=TIMEOUT)
    return {path.name: path.read_bytes() for path in (lab.folder / "cache").iterdir()}


@pytest.mark.parametrize("more", [[], ["--expert-parallel", "2"]])
def test_two_ranks_write_the_cache_that_one_writes(
    lab: Lab, written: dict[str, bytes], tmp_path: Path, more: list[str]
) -> None:
    assert sum(name.endswith(".bin") for name in written) % 2, "a part more for one of the ranks"
    run_distributed(_cache, 2, lab, tmp_path, [*PARTS, *more], timeout=TIMEOUT)
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert found.keys() == written.keys()
    for name, content in written.items():
        assert found[name] == content, name
