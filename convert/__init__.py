"""Takes published checkpoints into this project, without running them, and back."""
