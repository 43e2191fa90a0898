"""Models with other mixers than attention from training to translation, through the commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.forked import command, generate, train
from tests.system.mixers import Mixers, translation
from tests.system.runs import Lab
from tests.system.test_learning import ENOUGH, bleu

RETENTION = Mixers(
    (
        "model.encoder_mixer={name: retention, chunk_size: 3, shortest_memory: 4.0}",
        "model.decoder_mixer={name: retention, shortest_memory: 4.0}",
        "model.positions=none",
    )
)


@pytest.fixture(scope="module")
def run(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with experts that began on two ranks and was resumed on one, with other chunks."""
    folder = tmp_path_factory.mktemp("retention") / "run"
    RETENTION.train(lab.moe, folder, 4, ranks=2)
    more = ("model.encoder_mixer.chunk_size=null", "train.expert_parallel=1", "--resume")
    return RETENTION.train(lab.moe, folder, 6, *more)


def test_an_export_translates_like_its_run(lab: Lab, run: Path, tmp_path: Path) -> None:
    export = tmp_path / "export"
    command("export", run, "--out", export)[0].check()
    expected = translation(lab, tmp_path, run, "--beam", "4")
    assert expected.strip()
    assert translation(lab, tmp_path, export, "--beam", "4") == expected
    # two times the same model is this model
    assert translation(lab, tmp_path, export, run, "--beam", "4") == expected


MIXERS: dict[str, tuple[str, ...]] = {
    "attention": (),
    "decoder": ("model.decoder_mixer=retention",),
    "both": (
        "model.encoder_mixer=retention",
        "model.decoder_mixer=retention",
        "model.positions=none",
    ),
    "dynamic convolutions": (
        "model.encoder_mixer=dynamic_convolution",
        "model.decoder_mixer=dynamic_convolution",
    ),
    "lightweight convolutions": (
        "model.encoder_mixer=lightweight_convolution",
        "model.decoder_mixer=lightweight_convolution",
    ),
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mixers", MIXERS)
def test_a_model_learns(lab: Lab, tmp_path: Path, mixers: str) -> None:
    run = tmp_path / "run"
    train(lab.dense, f"run_dir={run}", *MIXERS[mixers], timeout=500.0)[0].check()
    finished = generate(run, "--output", tmp_path / "out", timeout=100.0)[0].check()
    print(mixers, bleu(finished))
    assert bleu(finished) > ENOUGH


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("--dtype", "int8"),
        ("--dtype", "bf16"),
        ("--dtype", "fp16"),
        ("--sampling", "true", "--seed", "3"),
        ("--diverse-groups", "2", "--beam", "4"),
        ("--align", "--format", "jsonl"),
        ("--n-best", "2", "--beam", "3", "--format", "tsv"),
    ],
    ids=" ".join,
)
def test_searches_of_all_kinds(
    lab: Lab, run: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    lines = translation(lab, tmp_path, run, *options).splitlines()
    assert len(lines) >= len(lab.text("test.en").read_text().splitlines())


@pytest.mark.slow
def test_other_models_are_made_of_it(lab: Lab, tmp_path: Path) -> None:
    dense, pruned = RETENTION.make_others(lab, tmp_path)
    assert "cross 0" in pruned and "decoder 0" not in pruned
    other = "model.decoder_mixer={name: retention, shortest_memory: 8.0}"
    refused = RETENTION.refused(lab, tmp_path, other, f"train.init_from={dense}")
    assert "has model.decoder_mixer" in refused.err
