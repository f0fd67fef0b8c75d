"""BandPO: probability-aware trust regions for reinforcement learning of language models."""
