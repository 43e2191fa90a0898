"""One small text with a vocabulary."""

from tests.unit.runs.conftest import text, vocab

__all__ = ["text", "vocab"]
