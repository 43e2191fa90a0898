"""A server that shows run folders: a table, curves, expert maps and translations over time."""
