"""Shrink and fine-tune, from a folder of Hugging Face to students of three kinds."""

from __future__ import annotations

from pathlib import Path

import pytest

from ds_seq.data.shards import ShardReader
from ds_seq.runs.open import open_run
from tests.system.forked import command, train
from tests.system.runs import NO_VALIDATION, Lab, losses, records

BART = Path(__file__).parents[1] / "data" / "huggingface" / "bart"
FOREIGN = ("--source-lang", "en", "--target-lang", "de", "--no-compare")
FIXED = (*NO_VALIDATION, "train.log_every=5", "train.tensorboard=false", "train.max_tokens=1500")
RATES = ("optimizer.lr=5e-3", "scheduler={name: inverse_sqrt, warmup_updates: 20}")
DISTIL = "{name: distillation, teacher: TEACHER, temperature: 2, kd_weight: 0.8, ce_weight: 0.2"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_imported_teacher_has_students_of_all_kinds(lab: Lab, tmp_path: Path) -> None:
    imported, teacher, data = tmp_path / "imported", tmp_path / "teacher", tmp_path / "data"
    command("import", "huggingface", BART, "--out", imported, *FOREIGN)[0].check()
    raw = [
        f"data.raw.{split}.{side}={lab.text(f'{split}.{language}')}"
        for split in ("train", "valid")
        for side, language in (("source", "en"), ("target", "de"))
    ]
    own = (f"data.dir={data}", *raw, *FIXED, *RATES)
    command("prepare", imported / "config.yaml", *own)[0].check()
    more = (f"train.init_from={imported}", "train.max_updates=150", f"run_dir={teacher}")
    train(imported / "config.yaml", *own, *more)[0].check()
    taught = losses(teacher)
    assert taught[150] < 0.8 * taught[5]

    # a student of one encoder layer starts near its teacher, and far below a new model
    small = tmp_path / "small"
    command("make-student", teacher, "--out", small, "--encoder-layers", "1")[0].check()
    brief = (*FIXED, *RATES, "train.max_updates=10")
    distil = f"criterion={DISTIL.replace('TEACHER', str(teacher))}"
    kinds = {
        "tuned": (),
        "distilled": (f"{distil}, hidden: {{weight: 3, normalize: true}}}}",),
        "new": ("train.init_from=null",),
    }
    for name, changes in kinds.items():
        run = f"run_dir={tmp_path / name}"
        train(small / "config.yaml", *brief, *changes, run)[0].check()
    assert losses(tmp_path / "tuned")[5] < 0.8 * losses(tmp_path / "new")[5]
    figures = records(tmp_path / "distilled")
    assert all(figure["hidden"] > 0 and figure["kd"] > 0 for figure in figures)

    # a wider one, through a projection
    wide = (f"{distil}, hidden: {{weight: 3, projection: learned}}}}", "model.d_model=24")
    more = ("train.init_from=null", "train.max_updates=60", f"run_dir={tmp_path / 'wide'}")
    train(small / "config.yaml", *brief, *wide, *more)[0].check()
    figures = records(tmp_path / "wide")
    assert figures[-1]["hidden"] < 0.8 * figures[0]["hidden"]
    assert open_run(tmp_path / "wide", "last").model_config.d_model == 24

    # one with a vocabulary of its own, from translations; words are refused
    labels = tmp_path / "labels"
    across = ("--data", lab.folder / "data", "--student", lab.dense, "--out", labels)
    for finished in command("pseudo-label", teacher, *across, "--beam", "1", ranks=2):
        finished.check()
    reader = ShardReader(labels, "train")
    assert reader.vocab_hash == ShardReader(lab.folder / "data", "train").vocab_hash
    assert len(reader) > 1500
    student = (*FIXED, "train.max_updates=2", f"data.dir={labels}")
    train(lab.dense, *student, f"run_dir={tmp_path / 'own'}")[0].check()
    (refused,) = train(lab.dense, *student, f"{distil}}}", f"run_dir={tmp_path / 'words'}")
    assert refused.code == 2 and "ds-seq pseudo-label TEACHER --student" in refused.err
