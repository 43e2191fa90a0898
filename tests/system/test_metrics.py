"""A metric from outside the package decides which checkpoint is the best."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from ds_seq.config.yaml_file import read_yaml, to_yaml
from ds_seq.scores.metric import Measured, Metric
from tests.system.forked import command, train
from tests.system.runs import TINY, Lab, checkpoints, records

EXTERNAL = f"{__name__}:surplus"


def surplus(target_lang: str) -> Metric:
    """Letters of the translations, in percent of those of the reference: less is better."""

    def compute(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Measured:
        letters, wanted = (sum(map(len, text)) for text in (hypotheses, references[0]))
        return Measured(100.0 * letters / wanted, f"letters|lang:{target_lang}")

    return Metric("surplus", higher_is_better=False, compute=compute)


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_lowest_value_of_an_external_metric_is_the_best(
    lab: Lab, tmp_path: Path, ranks: int
) -> None:
    more = ("train.validate_every=1", "train.max_updates=5", "train.keep_last=1")
    metrics = (f"validation={{metrics: [chrf, '{EXTERNAL}'], best: '{EXTERNAL}'}}",)
    sentences = ("validation.max_sentences=10", f"run_dir={tmp_path}")
    first, *_ = train(lab.dense, *TINY, *more, *metrics, *sentences, ranks=ranks)
    first.check()
    valid = {line["update"]: line for line in records(tmp_path, "valid")}
    assert all("bleu" not in line and line["chrf"] >= 0.0 for line in valid.values())
    values = {update: line["surplus"] for update, line in valid.items()}
    assert len(set(values.values())) > 1, "the test means them to differ"
    best = min(values, key=lambda update: values[update])
    index = json.loads((tmp_path / "checkpoints" / "index.json").read_text())
    assert index["best"] == [{"name": f"update_{best:08d}", "score": values[best]}]
    assert checkpoints(tmp_path) == sorted({best, 5})
    assert f"valid surplus {values[5]:.2f} (letters|lang:de)" in first.err


def test_old_keys_still_train_and_resume(lab: Lab, tmp_path: Path) -> None:
    old = ("train.valid_bleu=false", "train.best_metric=loss", "train.validate_every=2")
    train(lab.dense, *TINY, *old, "train.max_updates=2", f"run_dir={tmp_path}")[0].check()
    config = tmp_path / "config.yaml"
    written = read_yaml(config).data
    assert written.pop("validation") == {
        "metrics": [],
        "best": "loss",
        "max_sentences": None,
        "average": "pooled",
    }
    written["train"] |= {"valid_bleu": False, "best_metric": "loss", "valid_max_sentences": None}
    config.write_text(to_yaml(written))  # as an older version has written it
    resumed = train(config, "--resume", "train.max_updates=4")[0].check()
    assert "resuming at update 2" in resumed.err
    assert [line["update"] for line in records(tmp_path, "valid")] == [2, 4]
    assert "bleu" not in records(tmp_path, "valid")[-1]


def test_scoring_by_an_external_metric(lab: Lab) -> None:
    text = lab.text("test.de")
    done = command("score", text, "--reference", text, "--metrics", "ter", EXTERNAL)[0]
    lines = done.check().out.splitlines()
    assert [line.split("|")[0] for line in lines] == ["TER", "surplus"]
    assert lines[1] == "surplus|letters|lang: = 100.00"
