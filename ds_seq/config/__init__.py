"""The configuration of a run: pydantic models, YAML, the DeepSpeed dictionary. No torch."""
