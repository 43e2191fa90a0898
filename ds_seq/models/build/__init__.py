"""From a model config to a model: with `ds_seq.models`, all that knows configuration here.

One short file per axis of a model; each reads its part of the config and gives a module.
"""

from ds_seq.models.build.transformer import build_seq2seq

__all__ = ["build_seq2seq"]
