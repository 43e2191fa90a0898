"""`ds-seq moe-stats` on trained models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from tests.system.forked import command
from tests.system.runs import Lab, records


@pytest.mark.timeout(240)
def test_the_figures_are_those_of_the_validation_on_other_ranks(
    lab: Lab, moe_run: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "load.png"
    arguments = ("--data", lab.folder / "data", "--checkpoint", "last", "--json", "--out", picture)
    finished = command("moe-stats", moe_run, *arguments)[0].check()
    result = json.loads(finished.out)
    valid = records(moe_run, "valid")[-1]
    assert result["checkpoint"].endswith(f"update_{valid['update']:08d}")
    assert result["target_tokens"] == valid["tokens"]
    assert [layer["name"] for layer in result["layers"]] == ["encoder 1", "decoder 1"]
    for index, layer in enumerate(result["layers"]):
        assert layer["load"] == pytest.approx(valid[f"moe/layer{index}/load"], abs=2e-3)
        assert layer["entropy"] == pytest.approx(valid[f"moe/layer{index}/entropy"], rel=1e-2)
        assert layer["dropped"] == 0.0 and layer["load_balance"] > 0.5
    with Image.open(picture) as opened:
        assert opened.format == "PNG"


@pytest.mark.timeout(240)
def test_a_validation_leaves_a_map_in_the_event_files(moe_run: Path) -> None:
    events = EventAccumulator(str(moe_run / "tensorboard")).Reload()
    assert [image.step for image in events.Images("valid/moe/load")] == [60, 120]
    scalars = set(events.Tags()["scalars"])
    assert {f"moe/layer{layer}/{name}" for layer in (0, 1) for name in ("load_cv", "router_z")} <= (
        scalars
    )


@pytest.mark.timeout(240)
def test_a_dense_run_is_refused(lab: Lab, dense_run: Path) -> None:
    finished = command("moe-stats", dense_run, "--data", lab.folder / "data")[0]
    assert finished.code == 2 and not finished.out
    assert "is a dense model" in finished.err and "Traceback" not in finished.err
