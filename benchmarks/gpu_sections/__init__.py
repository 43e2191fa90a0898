"""Sections of gpu.py, one file per kind of work."""
