"""A package as a user of ds_seq would write it: a model, a task, and how it learns.

It stands on the path by itself and imports nothing of the tests.
"""
