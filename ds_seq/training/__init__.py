"""Training under DeepSpeed: engine, trainer, validation, checkpoints and what a run tells."""
