"""Models from disk and to disk: run folders, exports, other runs' weights, pruned models; later
other programs' formats."""
