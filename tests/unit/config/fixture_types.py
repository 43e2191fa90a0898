"""Types of the fixtures that are functions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ds_seq.config.experiment import ExperimentConfig

MakeConfig = Callable[..., ExperimentConfig]
WriteFile = Callable[[str, str], Path]
