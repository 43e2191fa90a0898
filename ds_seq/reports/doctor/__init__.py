"""Checks of the machines, the network and the installation that a training depends on."""
