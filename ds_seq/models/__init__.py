"""Models, by the `name` that tags their config."""

from ds_seq.models.build import build_seq2seq

MODELS = {"transformer": build_seq2seq}
