"""What `ds-seq check` refuses and prints besides mistakes in the file itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ds_seq import cli
from ds_seq.config.json_schema import json_schema
from ds_seq.config.load import load_experiment
from ds_seq.config.notes import notes
from ds_seq.config.yaml_file import read_yaml
from ds_seq.data.expected import clean_options, vocab_options
from ds_seq.data.manifest import Manifest, ShardCounts
from ds_seq.data.origin import Origin, TextRecord

EXPERIMENTS = sorted((Path(__file__).parents[3] / "configs" / "experiments").glob("*.yaml"))
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    for name in ("train.en", "train.de", "valid.en", "valid.de"):
        Path(name).write_text("a\n")
    Path("my.yaml").write_text(
        "name: x\n"
        "data:\n"
        "  source_lang: en\n"
        "  target_lang: de\n"
        "  dir: shards\n"
        "  vocab: {size: 1000}\n"
        "  raw:\n"
        "    train: {source: train.en, target: train.de}\n"
        "    valid: {source: valid.en, target: valid.de}\n"
    )
    return "my.yaml"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.raw.train={source: no.en, target: train.de}"], "data.raw.train: no.en: no such"),
        (["data.raw.train=[]"], "data.raw.train: missing, and data.dir shards has no shards"),
        (
            ["data.raw.valid=[]", "validation.metrics=[]", "validation.best=loss"],
            "data.raw.valid: missing",
        ),
        (["criterion={name: distillation, teacher: runs/no}"], "criterion.teacher: runs/no: no"),
        (
            ["criterion={name: model_and_base, base: {name: distillation, cache: no}}"],
            "criterion.base.cache: no: no such folder",
        ),
        (["train.init_from=runs/no"], "train.init_from: runs/no: no such run"),
        (["data.target_lang=ja"], "pip install 'sacrebleu[ja]', or use chrf"),
        (
            ["data.target_lang=th", "validation.metrics=[bleu,ter]"],
            "ter: cannot split text in 'th'",
        ),
    ],
)
def test_what_prepare_and_train_would_refuse(
    experiment: str, overrides: list[str], words: str, capsys: Capture
) -> None:
    assert cli.main(["check", experiment]) == 0
    capsys.readouterr()
    assert cli.main(["check", experiment, *overrides]) == 2
    assert words in capsys.readouterr().err


def test_a_warm_up_longer_than_the_run_is_a_note_as_in_training(
    experiment: str, capsys: Capture
) -> None:
    assert cli.main(["check", experiment]) == 0
    assert "# notes" not in capsys.readouterr().out
    assert cli.main(["check", experiment, "train.max_updates=50"]) == 0
    note = "scheduler.warmup_updates: 4000 is longer than the run, which ends at update 50"
    assert note in capsys.readouterr().out
    config = load_experiment(experiment, ["train.max_updates=50"])
    assert any(note in line for line in notes(config))  # which `ds-seq train` prints, too


def test_packages_of_metrics_that_are_not_measured(experiment: str, capsys: Capture) -> None:
    japanese = [experiment, "data.target_lang=ja"]
    assert cli.main(["check", *japanese, "validation={metrics: [chrf], best: chrf}"]) == 0
    assert cli.main(["check", *japanese, "train.validate_every=null", "train.save_every=5"]) == 0
    assert cli.main(["check", *japanese, "--elsewhere"]) == 0


def test_a_run_for_another_machine(experiment: str, capsys: Capture) -> None:
    Path("train.en").unlink()
    assert cli.main(["check", experiment]) == 2
    assert "`ds-seq check --elsewhere`" in capsys.readouterr().err
    assert cli.main(["check", experiment, "--elsewhere"]) == 0


def test_a_file_without_data_says_what_to_add(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("name: x\n")
    assert cli.main(["check", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("data: missing. Languages, raw files and shards.")


def test_tokens_epochs_and_memory(experiment: str, capsys: Capture) -> None:
    Path("shards").mkdir()
    shards = [{"pairs": 5_000, "src_tokens": 100_000, "tgt_tokens": 80_000}] * 2
    Path("shards/train.manifest.json").write_text(json.dumps({"shards": shards}))
    batch = ["train.max_tokens=1000", "train.accumulate=5", "train.max_updates=4000"]
    assert cli.main(["check", experiment, *batch, "--world-size", "4"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert "20,000   tokens" in lines["update"]
    assert "10   updates" in lines["epoch"] and "10,000 pairs" in lines["epoch"]
    assert "400.0   in train.max_updates" in lines["epochs"]
    by_tokens = ["train.max_tokens=1000", "train.global_batch_tokens=18500"]
    assert cli.main(["check", experiment, *by_tokens, "--world-size", "4"]) == 0
    (line,) = [text for text in capsys.readouterr().out.splitlines() if text.startswith("update")]
    assert line.split(None, 2)[1:] == [
        "19,000",
        "tokens, padding included: max_tokens 1,000 x batches_per_update 19 for "
        "global_batch_tokens 18,500 = accumulate 5 on 4 process(es)",
    ]
    for damaged in ("[", "[]", '{"shards": [{"pairs": 1}]}', '{"shards": 3}'):
        Path("shards/train.manifest.json").write_text(damaged)
        assert cli.main(["check", experiment]) == 0
        assert "known after `ds-seq prepare`" in capsys.readouterr().out


def test_shards_that_train_would_refuse(experiment: str, capsys: Capture) -> None:
    data = load_experiment(experiment).data
    counts, raw = (
        ShardCounts(1, 1, 1),
        [TextRecord.of(Path(f"train.{end}")) for end in ("en", "de")],
    )
    origin = Origin(tuple(raw), clean_options(data, "train"), vocab_options(data))
    Path("shards").mkdir()
    manifest = Manifest("hash", 1000, "uint16", ("en", "de"), (counts,), origin=origin)
    manifest.write(Path("shards/train.manifest.json"))
    assert cli.main(["check", experiment]) == 0
    assert "train shards" not in capsys.readouterr().out
    Path("train.de").write_text("b\n")
    differences = ["data.vocab.size=900", "data.clean.max_words=9"]
    assert cli.main(["check", experiment, *differences]) == 2
    error = capsys.readouterr().err
    for words in (
        "data.vocab.size: 900, but the train shards in shards were made with 1000; run",
        "data.clean.max_words: 9",
        "data.raw.train: train.de is not the text",
    ):
        assert words in error
    assert len(error.splitlines()) == 3
    assert cli.main(["check", experiment, *differences, "--elsewhere"]) == 0
    Path("train.de").unlink()
    assert cli.main(["check", experiment, "train.validate_every=null", "train.save_every=1"]) == 0
    assert "cannot verify that the shards in shards were made from" in capsys.readouterr().out


def test_costs_on_a_cluster_that_is_not_there(experiment: str, capsys: Capture) -> None:
    moe = ["model={preset: ds_moe_wmt_en_de, moe: {num_experts: 8, every: 3}}"]
    cluster = ["--world", "128", "--gpu-memory", "80"]
    settings = [*moe, "train.expert_parallel=8", "train.precision=bf16"]
    assert cli.main(["check", experiment, *settings, *cluster]) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("all_to_all")]
    # 6 layers with experts; to them and back, in forward and backward; 4,096 x 1.25 rows at most
    calls, each = lines[0].split()[2:4]
    assert calls == "8" and float(each) == pytest.approx(4096 * 512 * 2 / 1e6, abs=1e-3)
    assert "# layouts of 128 process(es)" in printed and "this experiment" in printed
    (peak,) = [line for line in printed.splitlines() if line.startswith("peak")]
    assert "of 80; the largest train.max_tokens:" in peak


def test_what_does_not_fit_is_a_note_that_says_what_does(experiment: str, capsys: Capture) -> None:
    small = [experiment, "model.preset=deep", "train.max_tokens=60000", "--gpu-memory", "24"]
    assert cli.main(["check", *small]) == 0
    (note,) = [line for line in capsys.readouterr().out.splitlines() if "would fit" in line]
    assert note.startswith("--gpu-memory 24: an update needs ") and "train.max_tokens " in note
    fitting = note.split("train.max_tokens ")[1].split()[0].replace(",", "")
    assert cli.main(["check", *small, f"train.max_tokens={fitting}"]) == 0
    assert "would fit" not in capsys.readouterr().out


def test_costs_as_values(experiment: str, capsys: Capture) -> None:
    options = [experiment, "--json", "--world", "4", "--sentence-length", "20"]
    assert cli.main(["check", *options, "train.max_updates=50"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["batch"] == {"sentences": 204, "length": 20}
    assert values["parameters"]["total"] == 44_650_496
    assert [each["stage"] for each in values["layouts"]] == [0, 1, 2, 3]
    assert any("warmup_updates" in note for note in values["notes"])
    assert cli.main(["check", experiment, "model.name=a.b:C", "--json"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("the costs of model.name a.b:C are unknown")


def accepts(schema: dict[str, Any], value: Any, root: dict[str, Any]) -> bool:
    """The part of JSON schema that the file needs."""
    if "$ref" in schema:
        return accepts(root["$defs"][schema["$ref"].rpartition("/")[2]], value, root)
    if "anyOf" in schema and not any(accepts(each, value, root) for each in schema["anyOf"]):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if "const" in schema and value != schema["const"]:
        return False
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int}
    kinds |= {"number": (int, float), "null": type(None)}
    if "type" in schema and not isinstance(value, kinds[schema["type"]]):
        return False
    if isinstance(value, dict):
        known = schema.get("properties", {})
        if schema.get("additionalProperties") is False and not value.keys() <= known.keys():
            return False
        required = set(schema.get("required", ())) <= value.keys()
        return required and all(accepts(known.get(k, {}), v, root) for k, v in value.items())
    if isinstance(value, list) and "items" in schema:
        return all(accepts(schema["items"], each, root) for each in value)
    return True


def test_the_json_schema_accepts_what_check_accepts(capsys: Capture) -> None:
    schema = json_schema()
    for path in EXPERIMENTS:
        assert accepts(schema, read_yaml(path).data, schema), path
    for good in (
        {"extends": "a.yaml", "model": {"positions": "rotary", "norm": {"name": "layer"}}},
        {"model": {"positions": {"name": "learned"}, "moe": {"num_experts": [2, 4]}}},
        {"data": {"raw": {"train": [{"source": "a", "target": "b"}]}}},
        {"data": {"raw": {"train": {"tsv": ["a", "b"], "columns": [2, 1]}}}},
        {"data": {"raw": "folder"}},
        {"criterion": {"name": "a.b:C", "options": {"x": 1}}},
    ):
        assert accepts(schema, good, schema), good
    for bad in (
        {"train": {"max_tokenz": 3}},
        {"train": {"max_tokens": "many"}},
        {"model": {"positions": "rotarry"}},
        {"data": {"raw": {"train": {"source": "a"}}}},
        {"data": {"raw": {"train": {"columns": [2, 1]}}}},
    ):
        assert not accepts(schema, bad, schema), bad
    assert cli.main(["check", "--json-schema"]) == 0
    assert json.loads(capsys.readouterr().out) == schema
