"""Training with `train.ema`: what validates, saves, resumes, exports and translates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ds_seq.runs.open import load_run, open_run, weights_fingerprint
from tests.system.forked import command, generate, train
from tests.system.runs import TINY, Lab, checkpoints, records

SETTINGS = (
    *TINY,
    "train.ema={decay: 0.9, validate_raw: true}",
    "train.validate_every=3",
    "train.max_updates=6",
    "train.keep_last=1",
    "train.keep_best=2",
    "train.keep_best_state=false",
    "validation={metrics: [chrf], best: loss, max_sentences: 4}",
    "generation={beam: 1, max_len_a: 0, max_len_b: 5}",
)


@pytest.fixture(scope="module")
def averaged_run(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with experts on two ranks, of which the first best checkpoint has lost its state."""
    folder = tmp_path_factory.mktemp("ema") / "run"
    train(lab.moe, *SETTINGS, f"run_dir={folder}", ranks=2)[0].check()
    assert checkpoints(folder) == [3, 6]
    return folder


def _weights(run: Path, checkpoint: str) -> dict[str, torch.Tensor]:
    return dict(load_run(run, checkpoint).model.named_parameters())


def test_the_average_is_validated_and_used(averaged_run: Path) -> None:
    for record in records(averaged_run, "valid"):
        assert record["loss"] != record["raw_loss"] and record["raw_ppl"] > 1.0
        assert record["best_by"] == "loss" and "raw_chrf" in record
    average, raw = _weights(averaged_run, "last"), _weights(averaged_run, "last:raw")
    assert any(not torch.equal(value, raw[name]) for name, value in average.items())
    for name, value in _weights(averaged_run, "last:ema").items():
        assert torch.equal(value, average[name])
    prints = {weights_fingerprint(open_run(averaged_run, which)) for which in ("last", "last:raw")}
    assert len(prints) == 2
    command("verify", averaged_run)[0].check()
    best_without_state = _weights(averaged_run, "update_00000003")
    for name, value in _weights(averaged_run, "update_00000003:raw").items():
        assert value.shape == best_without_state[name].shape


def test_it_is_exported_averaged_and_translates(
    lab: Lab, averaged_run: Path, tmp_path: Path
) -> None:
    out, raw = tmp_path / "out.safetensors", tmp_path / "raw"
    command("export", averaged_run, "--checkpoint", "last", "--out", out)[0].check()
    command("export", averaged_run, "--checkpoint", "last:raw", "--out", raw)[0].check()
    for path, which in ((out, "last"), (raw, "last:raw")):
        expected = _weights(averaged_run, which)
        for name, value in _weights(path, "best").items():
            assert torch.equal(value, expected[name])

    mean, folder = tmp_path / "mean.safetensors", averaged_run / "checkpoints"
    names = ("update_00000003", "update_00000006:raw")
    command("average", *(f"{folder}/{name}" for name in names), "--out", mean)[0].check()
    parts = [_weights(averaged_run, name) for name in names]
    for name, value in _weights(mean, "best").items():
        expected_mean = (parts[0][name].double() + parts[1][name].double()) / 2
        torch.testing.assert_close(value, expected_mean.float(), rtol=1e-6, atol=1e-7)

    texts = {}
    for name, model in (("run", averaged_run), ("file", out)):
        written = tmp_path / name
        options = ("--input", lab.text("test.en"), "--output", written, "--checkpoint", "last")
        generate(model, *options)[0].check()
        texts[name] = written.read_text()
    assert texts["run"] == texts["file"]


def test_a_run_resumes_with_it_turned_on_and_off(lab: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = (lab.dense, *SETTINGS, f"run_dir={folder}", "train.keep_best_state=true")
    train(*arguments, "train.ema=null", "train.max_updates=3")[0].check()
    refused = command("export", folder, "--checkpoint", "last:ema", "--out", tmp_path / "x")[0]
    assert refused.code == 2 and "has no average of the weights" in refused.err
    assert "Traceback" not in refused.err
    train(*arguments, "--resume")[0].check()
    assert list(folder.glob("checkpoints/update_00000006/ema.*"))
    train(*arguments, "train.ema=null", "train.max_updates=9", "--resume")[0].check()
    assert not list(folder.glob("checkpoints/update_00000009/ema.*"))
