"""The training: one step as the paper tells it, its losses, devices and states."""
