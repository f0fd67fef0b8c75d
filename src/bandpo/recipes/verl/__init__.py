"""The paper's runs as Hydra configurations for verl: paper.yaml, and one small overlay a choice."""
