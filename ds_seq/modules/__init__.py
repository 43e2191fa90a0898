"""Building blocks of the models: attention, positions, feed-forward, embedding, residuals, dropout.

Every block takes plain values or ready-made parts, owns its parameters, and knows nothing of
configuration or of the model around it.
"""
