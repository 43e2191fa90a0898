"""Figures of training and routing, as tables, heat maps and warnings."""
