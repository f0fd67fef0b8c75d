"""The explorer: clip rules to move and to watch, one HTML file without a request."""
