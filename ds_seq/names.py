"""Closed sets of words that both the config and the parts use, each written once.

Imports neither torch nor pydantic, so that every part may read it and `ds-seq check` stays quick.
"""

TOKENIZER_NAMES = ("sentencepiece",)
"""Values of `data.vocab.name` besides `package.module:Name`."""
