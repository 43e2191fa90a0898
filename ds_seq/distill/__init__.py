"""From a trained teacher to a smaller student."""
