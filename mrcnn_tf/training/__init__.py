"""Training: optimisers, callbacks, checkpoints, and `train`, which puts everything together."""
