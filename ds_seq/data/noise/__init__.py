"""Noise for denoising: pure functions of tokens and of (seed, epoch, number of the row).

No function loops over tokens or rows, because batches are made while a model is trained.
"""
