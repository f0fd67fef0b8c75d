"""The explorer: clip rules to adjust and watch, in one self-contained HTML file."""
