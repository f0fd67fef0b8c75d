"""The operator, rules and loss: what needs PyTorch alone."""
