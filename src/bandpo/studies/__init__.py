"""The packaged studies, one YAML each."""
