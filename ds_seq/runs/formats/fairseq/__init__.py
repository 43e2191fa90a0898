"""Checkpoints of fairseq and of its descendants, read without fairseq.

`plain` reads the file without running any code in it, `arguments` finds what the model is, `names`
maps its tensors to ours, `reference` computes what it computes, and `importing` does all of it.
"""
