"""Corpora from `prepare` to the model: `ds-seq order`, `ds-seq show-batch`, tags and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ds_seq.cli import main
from ds_seq.config.changes import changes, refuse, settings
from ds_seq.config.load import load_experiment
from ds_seq.data.corpora import CorporaDataset
from ds_seq.data.manifest import Manifest
from ds_seq.errors import UserError
from ds_seq.tasks import build_task
from ds_seq.tasks.mix import build_mix
from ds_seq.training.history import data_facts, run_facts
from ds_seq.training.inputs import check_tags, train_sampler
from tests.data.toy import write_toy

SIZES = {"web": 150, "back": 60, "other": 40}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three corpora and two validation texts of two language pairs, prepared; not to be changed."""
    folder = tmp_path_factory.mktemp("corpora")
    corpora: dict[str, dict[str, Any]] = {}
    for seed, (name, size) in enumerate(SIZES.items(), 1):
        write_toy(folder / name, size, 10, seed)
        corpora[name] = {
            "source": str(folder / name / "train.en"),
            "target": str(folder / name / "train.de"),
        }
    corpora["back"] |= {"tag": "<bt>", "upsample": 2, "clean": {"max_words": 100}}
    corpora["other"] |= {"languages": ["en", "fr"]}
    valid = [
        {"source": str(folder / name / "valid.en"), "target": str(folder / name / "valid.de")}
        for name in ("web", "other")
    ]
    valid[1] |= {"languages": ["en", "fr"]}  # type: ignore[dict-item]
    content = {
        "name": "many",
        "data": {
            "source_lang": "en",
            "target_lang": "de",
            "dir": str(folder / "data"),
            "corpora": corpora,
            "raw": {"valid": valid},
            "mixing": {
                "temperature": 5.0,
                "language_tags": {"de": "<2de>", "fr": "<2fr>"},
                "stages": [{"corpora": ["web", "back"], "until": {"updates": 3}}, {}],
            },
            "modify": {"subword_alpha": 0.2, "typos": 0.3},
            "vocab": {"size": 130, "user_symbols": ["<2de>", "<2fr>", "<bt>"]},
            "max_source_length": 90,
            "max_target_length": 90,
        },
        "train": {"max_tokens": 600, "batches_per_update": 8},
    }
    (folder / "many.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    assert main(["prepare", str(folder / "many.yaml")]) == 0
    return folder


def _dataset(folder: Path, *overrides: str) -> CorporaDataset:
    config = load_experiment(folder / "many.yaml", overrides)
    dataset = build_task(config.task, config.data).dataset("train")
    assert isinstance(dataset, CorporaDataset)
    return dataset


def test_shards_keep_the_corpora_apart(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, sizes in (("train", SIZES), ("valid", {"valid-1": 10, "valid-2": 10})):
        manifest = Manifest.read(folder / "data" / f"{split}.manifest.json")
        assert {corpus.name: corpus.num_rows for corpus in manifest.corpora} == sizes
        assert [c.languages for c in manifest.corpora][-1] == ("en", "fr")
    assert main(["prepare", str(folder / "many.yaml")]) == 0
    assert "shards are up to date" in capsys.readouterr().out


def test_each_corpus_has_its_own_filters_and_report(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = json.loads((folder / "data/clean/reports/train.json").read_text())
    assert {each["name"]: each["kept"] for each in report["corpora"]} == SIZES
    manifest = Manifest.read(folder / "data" / "train.manifest.json")
    assert manifest.origin.clean is not None
    assert manifest.origin.clean["corpora"] == {"back": {"max_words": 100}}
    changed = ("data.corpora.back.clean.max_words=99", "data.corpora.web.clean.max_chars=900")
    config = load_experiment(folder / "many.yaml", changed)
    with pytest.raises(UserError) as caught:
        build_task(config.task, config.data).dataset("train")
    first, second = str(caught.value).splitlines()
    assert first.startswith("data.corpora.web.clean.max_chars: 900, but the train shards in ")
    assert second.startswith("data.corpora.back.clean.max_words: 99, but the train shards in ")
    assert "or set data.corpora.back.clean.max_words=100" in second
    assert main(["prepare", str(folder / "many.yaml"), *changed, f"data.dir={folder}/other"]) == 0
    assert "train: kept 250 of 250 pairs" in capsys.readouterr().out


def test_the_order_is_the_same_on_any_number_of_ranks(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["order", str(folder / "many.yaml"), "--updates", "7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "the same pairs on 1, 2, 3, 5, 8 rank(s), and after stops behind updates" in lines[-1]
    assert [("other 0" in line) for line in lines[:7]] == [True] * 3 + [False] * 4
    assert "| stage 2 |" in lines[3]
    by_tokens = ["train.batches_per_update=null", "train.global_batch_tokens=4300"]
    assert main(["order", str(folder / "many.yaml"), *by_tokens, "--updates", "7"]) == 0
    assert capsys.readouterr().out.splitlines() == lines, "8 batches of 600 tokens, too"


def test_a_wrong_order_is_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ds_seq.data.batching import TokenBatchSampler

    right = TokenBatchSampler.batches

    def wrong(self: TokenBatchSampler, epoch: int, done: int = 0) -> Any:
        return (batch[self._rank :] for batch in right(self, epoch, done))

    monkeypatch.setattr(TokenBatchSampler, "batches", wrong)
    assert main(["order", str(folder / "many.yaml"), "--updates", "2", "--worlds", "1,2"]) == 2
    assert "update 1 has other pairs on 2 rank(s)" in capsys.readouterr().err


@pytest.mark.parametrize("worlds", ["", "0", "1,x", "2,"])
def test_numbers_of_ranks_are_checked(
    folder: Path, worlds: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["order", str(folder / "many.yaml"), f"--worlds={worlds}"]) == 2
    assert "--worlds" in capsys.readouterr().err


def test_show_batch_prints_what_the_model_reads(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["show-batch", str(folder / "many.yaml"), "--count", "9", "--most", "50"]
    assert main(run) == 0
    shown = capsys.readouterr().out
    assert "batch 1, epoch 1, stage 1: " in shown and "batch 9" in shown
    lines = shown.splitlines()
    heads = [number for number, line in enumerate(lines) if ": back, pair " in line]
    assert heads
    for head in heads:
        assert lines[head + 1].startswith("    source text   <2de><bt>")
        assert lines[head + 2].split()[2:4] == ["<2de>", "<bt>"]
    assert main(run) == 0
    assert capsys.readouterr().out == shown, "the same again"
    assert main([*run, "train.seed=2"]) == 0
    assert capsys.readouterr().out != shown


def test_tags_in_text_and_on_the_fly_are_the_same_ids(folder: Path) -> None:
    """A translation is asked for with tags in its text; training adds their ids."""
    config = load_experiment(folder / "many.yaml")
    task = build_task(config.task, config.data)
    encode = task.tokenizers.source.encode
    assert encode("<2de><bt> a child") == [*encode("<2de>"), *encode("<bt>"), *encode("a child")]
    valid = task.dataset("valid")
    batch = task.collate(valid, [0, 19])
    assert batch.inputs.source[:, 0].tolist() == [*encode("<2de>"), *encode("<2fr>")]


def test_a_router_by_language_finds_the_tags_of_the_experiment(folder: Path) -> None:
    router = ["model.moe={num_experts: 4, router: language}"]
    config = load_experiment(folder / "many.yaml", router)
    task = build_task(config.task, config.data)
    check_tags(config, task, {"training": task.dataset("train")})
    config = load_experiment(folder / "many.yaml", [*router, "data.modify.typos=0"])
    untagged = config.data.mixing.model_copy(update={"language_tags": {}})
    data = config.data.model_copy(update={"mixing": untagged})
    task = build_task(config.task, data)
    with pytest.raises(UserError, match=r"150 of 150 training sources .* first is pair 1\)"):
        check_tags(config, task, {"training": task.dataset("train")})


def test_a_changed_corpus_is_named(folder: Path) -> None:
    """One line for it; the others are as they were."""
    config = load_experiment(folder / "many.yaml")
    now = settings(config, run_facts(config, 1) | data_facts(_dataset(folder), None))
    other = _dataset(folder, "data.corpora.back.join=60")
    then = settings(config, run_facts(config, 1) | data_facts(other, None))
    found = changes(then, now)
    assert [change.key for change in found] == ["data.train.back"]
    with pytest.raises(UserError) as caught:
        refuse(found, [], now, "runs/x")
    (line,) = str(caught.value).splitlines()
    assert line.startswith(
        "data.train.back: other shards: is another order of the data than runs/x"
    )
    assert line.endswith("--allow-change data.train.back")
    refuse(found, ["data.train.back"], now, "runs/x")


def test_shards_of_other_corpora_are_refused(folder: Path) -> None:
    config = load_experiment(folder / "many.yaml")
    names = ("web", "new", "other")
    corpora = dict(zip(names, config.data.corpora.values(), strict=True))
    data = config.data.model_copy(update={"corpora": corpora})
    with pytest.raises(UserError, match="has web, new, other, but the train shards .* have web"):
        build_task(config.task, data).dataset("train")


def test_plain_training_text_has_no_mix(folder: Path) -> None:
    """Then the order is the one of earlier versions."""
    config = load_experiment(folder / "many.yaml")
    dataset = build_task(config.task, config.data).dataset("valid")
    sampler = train_sampler(config, dataset, 0, 1)
    assert build_mix(config.data, 1, type("Plain", (), {})(), sampler) is None
