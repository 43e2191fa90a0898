"""Models from disk and to disk: run folders, exported folders, and later other programs'
formats."""
