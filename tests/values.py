"""Parts with the defaults of the schema, for tests that care about a few options only."""

from __future__ import annotations

from typing import Any

from benchmarks.plain import batch_limits, beam_search
from ds_seq.config.clean import FIRST, CleanConfig
from ds_seq.config.data import DataConfig
from ds_seq.config.generation import GenerationConfig
from ds_seq.config.model import MoeConfig
from ds_seq.data.clean import CleanOptions
from ds_seq.search.sampling import Sampling
from ds_seq.text.normalize import Normalizer

__all__ = [
    "BIAS_RATE",
    "MIN_CAPACITY",
    "SHARD_SIZE",
    "batch_limits",
    "beam_search",
    "clean_options",
    "draws",
    "progress_at",
]

SHARD_SIZE: int = DataConfig.model_fields["shard_size"].default
BIAS_RATE: float = MoeConfig.model_fields["bias_rate"].default
MIN_CAPACITY: int = MoeConfig.model_fields["min_capacity"].default


def draws(**options: Any) -> Sampling:
    """Draws from the whole distribution, but for ``options``."""
    fields = GenerationConfig.model_fields
    cuts = {name: fields[f"sampling_{name}"].default for name in ("top_k", "top_p", "epsilon")}
    return Sampling(**{**cuts, "seed": fields["seed"].default, **options})


def clean_options(**options: Any) -> CleanOptions:
    """The filters of an experiment that says nothing about them, but for ``options``."""
    limits = CleanConfig().model_dump(include={*FIRST} - {"nfkc", "fold_spaces"})
    normalizer = Normalizer(nfkc=False, fold_spaces=False)
    return CleanOptions(**{"normalizer": normalizer, **limits, **options})


def progress_at(update: int) -> dict[str, Any]:
    """Return the state of the trainer from which a run can resume."""
    return {
        "update": update,
        "skipped": 0,
        "best_score": None,
        "validations_without_progress": 0,
        "validated_at": -1,
        "seconds": 1.0,
        "batches": {"epoch": 1, "offset": update, "num_batches": 9},
    }
