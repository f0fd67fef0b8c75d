"""All pages and pictures."""
