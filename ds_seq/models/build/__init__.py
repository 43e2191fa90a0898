"""Build a model from its config.

There is one short file per component of a model; each reads its part of the config and returns a
module. Besides `ds_seq.models` itself, no other model code depends on the configuration.
"""

from ds_seq.models.build.transformer import build_seq2seq

__all__ = ["build_seq2seq"]
