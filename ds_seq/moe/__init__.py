"""Mixture of Experts: routers choose experts, dispatch moves tokens, experts compute."""
