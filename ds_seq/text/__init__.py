"""Text and tokens: the tokenizer protocol and the tokenizers behind it."""
