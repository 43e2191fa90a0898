"""From raw parallel text to batches of tokens: cleaning, shards, token batches, stream.

The modules, in the order in which they process a sentence:

* `clean`: normalizes and filters training corpora; `cleaning` has its parts.
* `binarize`: text and tokenizers (`ds_seq.text`) -> shards.
* `source`: the interface to the examples, wherever they are stored.
* `open`: opens the source that a config names.
* `shards`: the file format, with its writer and its memory-mapped reader.
* `batching`: assigns sentences to batches and batches to ranks.
* `batch`: padded tensors of such a batch.
* `stream`: resumable stream of the batches of all epochs, prepared in the background.

This file imports none of them, because data preparation runs without torch.
"""
