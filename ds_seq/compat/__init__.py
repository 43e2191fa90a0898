"""Other toolkits: their command lines and checkpoints in the terms of ds_seq."""
