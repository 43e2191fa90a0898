"""A run whose markers choose sets of parameters, from the file to translations."""

from __future__ import annotations

from pathlib import Path

import torch

from ds_seq.runs.open import load_run
from tests.system.forked import command, generate, train
from tests.system.runs import TINY, Lab, losses

SETTINGS = (
    *TINY,
    "train.validate_every=null",
    "train.save_every=2",
    "train.log_every=1",
    "generation={beam: 2, max_len_a: 0, max_len_b: 5}",
)


def test_markers_reach_the_model_and_stay_with_it(lab: Lab, tmp_path: Path) -> None:
    pieces = _pieces(lab)
    markers = f"model.multiway={{markers: {{{pieces[20]!r}: 0, {pieces[21]!r}: 1}}}}"
    run = tmp_path / "run"
    arguments = (lab.moe, *SETTINGS, markers, f"run_dir={run}")
    stage = "train.deepspeed=configs/ds_config/zero3.json"
    train(*arguments, stage, "train.max_updates=2", ranks=2)[0].check()
    one_rank = ("train.expert_parallel=1", "train.max_updates=4", "--resume")
    train(*arguments, *one_rank)[0].check()
    assert sorted(losses(run)) == [1, 2, 3, 4]
    loaded = load_run(run, "last").model
    assert {t: int(s) for t, s in enumerate(loaded.markers.sets) if s >= 0} == {20: 0, 21: 1}
    out = tmp_path / "out.safetensors"
    command("export", run, "--checkpoint", "last", "--out", out)[0].check()
    texts = []
    for model in (run, out):
        written = tmp_path / "text"
        written.unlink(missing_ok=True)
        options = ("--input", lab.text("test.en"), "--output", written, "--checkpoint", "last")
        generate(model, *options)[0].check()
        texts.append(written.read_text())
    assert texts[0] == texts[1]
    student = tmp_path / "student"
    layers = ("--encoder-layers", "1", "--decoder-layers", "1")
    made = ("--out", student, "--checkpoint", "last")
    command("make-student", run, *layers, *made)[0].check()
    ours = dict(load_run(student, "best").model.named_parameters())
    name = "encoder.layers.0.self_attention.qkv.sets.1.weight"
    assert torch.equal(ours[name], loaded.get_parameter(name))


def test_a_marker_that_is_no_token_is_named(lab: Lab, tmp_path: Path) -> None:
    markers = "model.multiway={markers: {<nowhere>: 1}}"
    refused = train(lab.dense, *SETTINGS, markers, f"run_dir={tmp_path / 'run'}")[0]
    assert refused.code == 2 and "Traceback" not in refused.err
    assert "model.multiway.markers: '<nowhere>' is no token of the source vocabulary" in refused.err


def _pieces(lab: Lab) -> list[str]:
    from ds_seq.config.load import load_experiment
    from ds_seq.text.build import load_tokenizers

    config = load_experiment(lab.dense)
    tokenizer = load_tokenizers(config.data, Path(config.data.dir)).source
    return tokenizer.pieces(range(len(tokenizer)))
