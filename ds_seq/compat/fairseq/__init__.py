"""fairseq: its command lines (`translate`) and the models that they describe (`model`).

Nothing here imports torch or fairseq. Checkpoints are read by `ds_seq.runs.formats.fairseq`.
"""
