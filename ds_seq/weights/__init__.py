"""Weights on disk and in a model."""
