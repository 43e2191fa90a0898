"""What folders of transformers say about their models, read without torch.

`ds-seq import` and experiments with `model: {name: huggingface}` make the same sections of them.
"""
