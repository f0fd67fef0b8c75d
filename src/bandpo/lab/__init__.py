"""Comparison of methods over seeds: studies, their runs, and the statistics (needs the `train` extra)."""
