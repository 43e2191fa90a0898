"""`ds-seq from-fairseq` of the tasks `denoising` and `masked_lm`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ds_seq import cli
from ds_seq.compat.fairseq.architectures import BARTS, ROBERTAS
from ds_seq.compat.fairseq.command import BY_DEST, Given, read_command
from ds_seq.compat.fairseq.translate import translate
from ds_seq.config.load import read_experiment
from ds_seq.errors import UserError
from ds_seq.tasks import build_task
from tests.unit.compat.one_side import LINES, WORDS

RECORDED = json.loads(
    (Path(__file__).parents[2] / "data" / "fairseq_flags.json").read_text(encoding="utf-8")
)["noisy_models"]
TRAINING = ["--optimizer", "adam", "--lr", "0.001", "--max-tokens", "2048", "--max-update", "2"]
SMALL = [f"--encoder-{n}" for n in ("embed-dim=8", "ffn-embed-dim=8", "layers=1")]
START, PAD, END, MASK = 0, 1, 2, WORDS + 4
# what follows from other arguments, and what none of them has
UNREAD = ("decoder_embed_dim", "decoder_ffn_embed_dim", "decoder_input_dim", "decoder_output_dim")


def words_of(arch: str, *flags: str, folder: object = "nowhere") -> list[str]:
    task = ["masked_lm", "--criterion", "masked_lm"] if arch in ROBERTAS else ["denoising"]
    return [str(folder), "--arch", arch, *TRAINING, "--task", *task, *flags]


def experiment_of(arch: str, *flags: str, folder: object = "nowhere") -> dict[str, Any]:
    found = translate(read_command(words_of(arch, *flags, folder=folder))).experiment
    found["data"]["vocab"].setdefault("size", 50_000)
    return found


@pytest.mark.parametrize("arch", sorted(RECORDED))
def test_architectures_imply_what_they_imply_in_fairseq(arch: str) -> None:
    given = Given.of({"arch": arch})
    for dest, value in RECORDED[arch].items():
        if dest in BY_DEST and dest not in UNREAD and value is not None:
            assert given[dest] == value, dest
    for what in ("embed_dim", "ffn_embed_dim") if arch in BARTS else ():
        assert RECORDED[arch][f"decoder_{what}"] == given[f"encoder_{what}"]
    model = read_experiment(experiment_of(arch)).model
    assert model.name == ("encoder_only" if arch in ROBERTAS else "transformer")
    assert model.positions.name == "learned" and model.max_positions == 1024


def test_all_architectures_are_known() -> None:
    assert RECORDED.keys() == {*BARTS, *ROBERTAS}


def test_text_of_one_side_is_hidden_and_restored(one_side: Path, tmp_path: Path) -> None:
    """Blocks are of whole texts; only they begin with the start symbol."""
    flags = [*SMALL, "--encoder-attention-heads", "2", "--tokens-per-sample", "40"]
    flags += ["--mask-prob", "0.4", "--mask-whole-words"]
    words = words_of("roberta", *flags, folder=one_side)
    assert cli.main(["from-fairseq", "--out", str(tmp_path / "new"), "--", *words]) == 0
    path = tmp_path / "new" / "experiment.yaml"
    text = path.read_text().replace("dir: data/masked_lm", f"dir: {tmp_path}/shards")
    path.write_text(text)
    assert cli.main(["prepare", str(path)]) == 0
    config = read_experiment(experiment_of("roberta", *flags, folder=one_side))
    assert config.task.predicted == 0.4
    assert not config.task.whole_words  # each symbol of the dictionary is a word
    settings = config.data.model_copy(update={"dir": str(tmp_path / "shards")})
    task = build_task(config.task, settings)
    batch = task.collate(task.dataset("train"), np.array([0]))
    tokens = [token for line in LINES for token in line]
    assert batch.labels.tolist() == [[START, *tokens]]
    assert MASK in batch.inputs.tokens and (batch.inputs.tokens != batch.labels).sum() > 1
    assert not batch.mask[batch.labels == START].any()
    documents = build_task(config.task.model_copy(update={"blocks": "document"}), settings)
    found = documents.dataset("train")
    labels = [row[row != PAD].tolist() for row in documents.collate(found, np.arange(3)).labels]
    assert labels == [[START, *LINES[0]], [START, *LINES[2], *LINES[3]], [START, *LINES[5]]]


NOISES: list[tuple[str, dict[str, Any]]] = [
    ("--mask 0.3 --mask-length span-poisson --replace-length 1", {"infill": 0.3, "rotate": 0.5}),
    ("--mask 0.2 --rotate 0", {"delete": 0.2, "infill": 0.0, "rotate": 0.0}),
    ("--mask 0.2 --replace-length 1 --mask-random 0.1", {"mask": 0.2, "random": 0.1}),
    ("--mask 0.2 --mask-length word --replace-length -1 --bpe sentencepiece "
     "--sentencepiece-model x", {"mask": 0.2, "whole_words": True}),
    ("--mask 0.2 --mask-length word --replace-length 1", {"mask": 0.2, "whole_words": False}),
    ("--permute-sentences 1.0 --rotate 0", {"permute_sentences": 1.0, "infill": 0.0}),
    ("--mask 0.3 --mask-length span-poisson --replace-length 1 --poisson-lambda 3.5",
     {"span_mean": 3.5}),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "noise"), NOISES)
def test_the_noise_is_that_of_the_flags(flags: str, noise: dict[str, Any], one_side: Path) -> None:
    task = read_experiment(experiment_of("bart_base", *flags.split(), folder=one_side)).task
    assert noise.items() <= vars(task.noise).items()
    assert (task.blocks, task.block_tokens, task.random_start) == ("document", 512, False)


@pytest.mark.parametrize(
    ("arch", "flags", "message"),
    [
        ("bart_base", ["--rotate", "0"], "--mask, --rotate, --permute-sentences: all are 0; raise"),
        ("bart_base", ["--insert", "0.1"], "--insert: no tokens are inserted"),
        (
            "bart_base",
            ["--mask", "0.1", "--mask-length", "span-poisson"],
            "--replace-length 0: a s",
        ),
        ("bart_base", ["--mask-length", "spans"], "--mask-length spans: there are subword, word"),
        ("bart_base", ["--sample-break-mode", "complete"], "complete: not supported; there are"),
        ("bart_base", ["--criterion", "masked_lm"], "masked_lm goes with --task masked_lm"),
        ("fconv", [], "--arch fconv: --task denoising goes with bart_base"),
        ("roberta", ["--mask-multiple-length", "3"], "--mask-multiple-length: what is masked is"),
        ("roberta", ["--criterion", "cross_entropy"], "--criterion cross_entropy: masked_lm goes"),
        (
            "roberta",
            ["--arch", "bart_base"],
            "--arch bart_base: --task masked_lm goes with roberta",
        ),
        ("roberta", ["--leave-unmasked-prob", "0.95"], "random_tokens"),
        ("roberta", ["--mask-prob", "x"], "--mask-prob x: should be a number"),
        ("roberta", ["--adaptive-input"], "--adaptive-input: of language models"),
        ("roberta", ["--task", "translation", "-s", "en", "-t", "de"], "belongs to --task masked"),
        (
            "bart_base",
            ["--task", "translation", "-s", "en", "-t", "de", "--mask", "0.1"],
            "--mask: which one",
        ),
    ],
)
def test_what_cannot_be_translated_is_refused_by_name(
    arch: str, flags: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        experiment_of(arch, *flags)
