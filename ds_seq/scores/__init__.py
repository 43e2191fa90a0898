"""Metrics of text quality, their confidence intervals and significance tests."""
