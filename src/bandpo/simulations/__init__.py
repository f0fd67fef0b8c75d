"""The packaged simulations, one YAML each."""
