"""What the maker of the old artifacts and the test of them have in common."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ARTEFACTS = Path(__file__).parent / "v0_1"
MODELS = {  # what is translated, by the name of its translations in expected.json
    "dense": "runs/dense",
    "moe": "runs/moe",
    "dense_file": "dense.safetensors",
    "moe_folder": "moe_export",
    "sigmoid_file": "sigmoid.safetensors",
}
RESUMED = ("dense", "moe")
MORE_UPDATES = 3
STUDENT = "student"


def resume_options(updates: int) -> list[str]:
    """What is added to the experiment of a run that has made ``updates`` updates."""
    return [f"train.max_updates={updates + MORE_UPDATES}", "train.log_every=1"]


def last_update(run: Path) -> int:
    """The update of the newest checkpoint."""
    return max(int(path.name.removeprefix("update_")) for path in run.glob("checkpoints/update_*"))


def losses_after(run: Path, update: int) -> list[float]:
    """The training losses that ``run`` has recorded after ``update``."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train" and line["update"] > update]


def hypotheses(translations: Path) -> list[list[dict[str, Any]]]:
    """Texts and scores by line, of a file that ``ds-seq generate --format jsonl`` has written."""
    rows = [json.loads(line) for line in translations.read_text(encoding="utf-8").splitlines()]
    return [
        [{"text": found["text"], "score": found["score"]} for found in row["hypotheses"]]
        for row in rows
    ]
