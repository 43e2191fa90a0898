"""Output of a run, for programs and for people."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from ds_seq.reports.heat_map import Panel, draw_heat_map
from ds_seq.training.run_log import RunLog


def read(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def test_figures_go_to_both_logs(tmp_path: Path) -> None:
    log = RunLog(tmp_path, True, True, 10, 0)
    log.record("train", 1, {"loss": 2.5, "moe/layer0/load": [0.25, 0.75]})
    log.record("valid", 1, {"bleu": 31, "samples": "text", "moe/layer0/load": [0.5, 0.5]})
    log.close()
    train, valid = read(tmp_path)
    assert train["kind"] == "train" and train["update"] == 1 and train["loss"] == 2.5
    assert valid["samples"] == "text"
    assert curves(tmp_path) == {
        "train/loss": [(1, 2.5)],
        "moe/layer0/load/0": [(1, 0.25)],
        "moe/layer0/load/1": [(1, 0.75)],
        "valid/bleu": [(1, 31.0)],
        "valid/moe/layer0/load/0": [(1, 0.5)],
        "valid/moe/layer0/load/1": [(1, 0.5)],
    }


def test_a_heat_map_becomes_an_image_of_the_event_files(tmp_path: Path) -> None:
    log = RunLog(tmp_path, True, True, 10, 0)
    panel = Panel("load", ["0"], [[0.5, 1.5]])
    log.picture("valid/moe/load", 4, panel)
    log.picture("valid/moe/load", 5, None)
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (image,) = events.Images("valid/moe/load")
    assert (image.step, image.height, image.width) == (4, *draw_heat_map([panel]).shape[:2])
    assert not (tmp_path / "metrics.jsonl").read_text()


def test_what_is_no_number_is_null_because_json_knows_no_infinity(tmp_path: Path) -> None:
    log = RunLog(tmp_path, True, False, 10, 0)
    log.record("train", 1, {"grad_norm": float("inf"), "list": [1.0, float("nan")]})
    log.close()
    assert "Infinity" not in (tmp_path / "metrics.jsonl").read_text()
    (line,) = read(tmp_path)
    assert line["grad_norm"] is None and line["list"] == [1.0, None]
    assert not (tmp_path / "tensorboard").exists()


def test_a_resumed_run_appends_and_replaces_what_lies_after_its_checkpoint(tmp_path: Path) -> None:
    first = RunLog(tmp_path, True, True, 10, 0)
    for update in (1, 2, 3):  # killed after 3, with a checkpoint of 1
        first.record("train", update, {"loss": 5.0})
    first.close()
    second = RunLog(tmp_path, True, True, 10, 1)
    second.record("train", 2, {"loss": 4.0})
    second.close()
    assert [(line["update"], line["loss"]) for line in read(tmp_path)] == [(1, 5.0), (2, 4.0)]
    assert curves(tmp_path)["train/loss"] == [(1, 5.0), (2, 4.0)]


def test_a_run_that_starts_over_keeps_the_records_of_the_one_before(tmp_path: Path) -> None:
    first = RunLog(tmp_path, True, False, 10, 0)
    first.record("train", 1, {"loss": 5.0})
    first.close()
    RunLog(tmp_path, True, False, 10, 0).close()  # its checkpoints were lost in a copy
    assert read(tmp_path) == []
    assert '"loss": 5.0' in (tmp_path / "metrics.jsonl.old").read_text()


def test_no_start_over_replaces_the_records_of_another(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for name in ("metrics.jsonl.old", "metrics.jsonl.old2", "metrics.jsonl.old3"):
        path.write_text(f'{{"update": 1, "of": "{name}"}}\n')
        RunLog(tmp_path, True, False, 10, 0).close()
        assert name in (tmp_path / name).read_text()


def test_lines_that_are_no_records_are_kept_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = '{"update": 1}\n{"up!ate": 2}\n{"update": 3}\n'
    path.write_text(whole + '{"update": 4')
    RunLog(tmp_path, True, False, 10, 3).close()
    assert [line["update"] for line in read(tmp_path)] == [1, 3]
    assert (tmp_path / "metrics.jsonl.old").read_text().startswith(whole)


def test_other_ranks_write_and_print_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = RunLog(tmp_path, False, True, 10, 0)
    log.record("train", 1, {"loss": 1.0})
    log.picture("load", 1, Panel("load", ["0"], [[1.0]]))
    log.advance(1, {"loss": "1.0"})
    log.say("hello")
    log.close()
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr() == ("", "")


def test_without_a_terminal_there_are_lines_and_no_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = RunLog(tmp_path, True, False, 10, 0)
    log.advance(1)
    log.advance(2, {"loss": "1.0", "lr": "5e-4"})
    log.say("hello")
    log.close()
    captured = capsys.readouterr()
    first, second = captured.err.splitlines()
    assert re.fullmatch(r"update 2 \| loss 1\.0 \| lr 5e-4 \| ETA \d+:\d\d:\d\d", first)
    assert second == "hello" and captured.out == ""
    log.note("only in the file")
    written = (tmp_path / "train.log").read_text().splitlines()
    assert [line[20:] for line in written] == [first, second, "only in the file"]


def test_the_eta_is_the_mean_time_of_an_update_times_those_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([100.0, 100.0 + 2 * 3600])
    monkeypatch.setattr("ds_seq.training.run_log.time.monotonic", lambda: next(clock))
    log = RunLog(tmp_path, True, False, 30, 10)  # resumed at update 10 of 30
    log.advance(18, {"loss": "1"})  # 8 updates in 2 hours, so 12 take 3
    assert capsys.readouterr().err == "update 18 | loss 1 | ETA 3:00:00\n"


def test_the_last_validation_is_kept_with_the_hyper_parameters(tmp_path: Path) -> None:
    settings = {"optimizer.lr": 1e-3, "model.norm_position": "pre", "data.corpora": [1]}
    log = RunLog(tmp_path, True, True, 10, 0, settings)
    log.record("valid", 4, {"bleu": 20.0, "samples": "source  a\ntranslation  b", "moe/x/y": 1.0})
    log.record("valid", 8, {"bleu": 30.0, "samples": "source  a\ntranslation  c"})
    log.end(8, "max_updates")
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    texts = [
        event.tensor_proto.string_val[0] for event in events.Tensors("valid/samples/text_summary")
    ]
    assert texts[1] == b"    source  a\n    translation  c"
    assert curves(tmp_path)["final/bleu"] == [(0, 30.0)]
    plugins = events.summary_metadata
    start = plugins["_hparams_/session_start_info"].plugin_data.content
    assert b"optimizer.lr" in start and b"pre" in start


class _Recorder:
    """A tracker that fails from its second record on."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def record(self, figures: object, update: int) -> None:
        self.seen.append((update, figures))
        if len(self.seen) > 1:
            raise ConnectionError("no network\nat all")

    def end(self, succeeded: bool) -> None:
        self.seen.append(succeeded)


def test_a_tracker_that_fails_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = _Recorder()
    log = RunLog(tmp_path, True, False, 10, 0, {}, [tracker])
    for update in range(1, 4):
        log.record("train", update, {"loss": 2.0, "name": "x", "nan": float("nan")})
    log.end(3, "max_updates")
    log.close()
    assert tracker.seen == [(1, {"train/loss": 2.0}), (2, {"train/loss": 2.0})]
    assert "ds_seq.fit) has failed: no network" in capsys.readouterr().err
    assert len(read(tmp_path)) == 4
