"""Recipes: one YAML a run, holding only what differs from the defaults."""
