"""What a run is, as data: pydantic models, YAML, the DeepSpeed dictionary. No torch here."""
