"""Sections of gpu.py: what is measured, one file per kind of work."""
