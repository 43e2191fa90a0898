"""Uses each toy of `inside.py` with the package that has them, in processes forked from one.

    python -m tests.system.toys.driver EXPERIMENT FOLDER PART...

The working folder holds the copy of `ds_seq`. Writes `FOLDER/PART.json` as soon as a toy
is through: null, or what went wrong. One that has such a file already is left out.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

import ds_seq
from ds_seq.config.model import TransformerConfig
from ds_seq.models.build import build_seq2seq
from tests.batches import PAD, encode
from tests.distributed.harness import run_distributed
from tests.system.toys.inside import TOYS
from tests.system.toys.life import live
from tests.system.toys.toy import Toy, result_file
from tests.unit.models.test_sublayers import VOCAB, walk

SIZES = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 3, "num_heads": 2, "ffn_dim": 24}


def check_model(fields: dict[str, Any]) -> None:
    """Parameters as counted, steps as whole sequences, and padding that changes nothing."""
    config = TransformerConfig.model_validate({**SIZES, "dropout": 0.0, **fields})
    model = build_seq2seq(config, VOCAB, 1, 0, seed=1).eval()
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert config.num_params(VOCAB).total == counted, (config.num_params(VOCAB), counted)
    source = torch.randint(4, VOCAB, (4, 12), generator=torch.Generator().manual_seed(1))
    for row, length in enumerate((12, 9, 3, 12)):
        source[row, length:] = PAD
    with torch.inference_mode():
        hidden = encode(model, source).hidden
        for row, length in enumerate((12, 9, 3, 12)):
            alone = encode(model, source[row : row + 1, :length]).hidden[0]
            torch.testing.assert_close(hidden[row, :length], alone, atol=1e-5, rtol=1e-5)
    for beam in (1, 3):
        walk(model, source, beam, 40)


def check(toy: Toy, experiment: str, folder: Path) -> str | None:
    """What went wrong with a toy, if anything."""
    try:
        if toy.fields is not None:
            run_distributed(check_model, 1, toy.fields)
        settings = toy.settings
        if any(setting.startswith("data.vocab") for setting in settings):
            settings += (f"data.dir={folder}/data",)
        live(experiment, settings, folder / "run")
    except Exception:
        return traceback.format_exc()
    return None


def main(experiment: str, folder: str, *parts: str) -> None:
    """See above."""
    assert Path(ds_seq.__file__).parent.samefile("ds_seq"), f"{ds_seq.__file__} is not the copy"
    for toy in TOYS:
        place = Path(folder) / toy.part.replace(" ", "_")
        if toy.part not in parts or result_file(toy, Path(folder)).exists():
            continue
        place.mkdir()
        problem = check(toy, experiment, place)
        result_file(toy, Path(folder)).write_text(json.dumps(problem), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
