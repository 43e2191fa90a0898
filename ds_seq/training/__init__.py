"""Training under DeepSpeed: engine, trainer, validation, checkpoints and logs."""
