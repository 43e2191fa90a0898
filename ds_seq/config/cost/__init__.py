"""What a run takes, from its config alone: memory of a device, and bytes between devices.

Nothing is built and torch is not imported. The arithmetic follows what this code and DeepSpeed 0.19
keep; `tests/distributed/test_costs.py` compares it with real runs.
"""
