"""Train draft networks: features, losses, the trainer, evaluation on held-out conversations."""
