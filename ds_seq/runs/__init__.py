"""Trained models on disk: opening, averaging and exporting them."""
