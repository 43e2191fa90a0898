"""Generated data for tests."""
