"""The small models of the tests of `ds_seq.models`."""

from tests.unit.models.conftest import build

__all__ = ["build"]
