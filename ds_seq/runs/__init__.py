"""Trained models on disk: their formats, what their users need to know, and how they are opened."""
