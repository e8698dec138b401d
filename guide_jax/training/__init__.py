"""Training: one step as in the paper, its losses, several devices, checkpoints."""
