"""From raw parallel text to batches of tokens: cleaning, shards, token batches, stream.

The modules, in the order in which a sentence meets them:

* `clean`: normalizes and filters a training corpus.
* `binarize`: text and tokenizers (`ds_seq.text`) -> shards.
* `source`: what everything below asks of the examples, wherever they are kept.
* `open`: opens the source that a config names.
* `shards`: the file format, writer and memory-mapped reader side by side.
* `batching`: which sentences form which batch, on which rank.
* `dataset`: padded tensors for such a batch.
* `stream`: batches of all epochs, made ahead in the background, resumable.

This file imports none of them: the preparing half runs without torch.
"""
