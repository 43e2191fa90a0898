"""Building blocks of the models: attention, positions, feed-forward, embedding, residuals, dropout.

Every block takes plain values or finished parts and owns its parameters. It does not depend on the
configuration or on the surrounding model.
"""
