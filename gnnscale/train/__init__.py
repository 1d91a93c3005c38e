"""The training loop, DeepSpeed's engine, loss, schedule and checkpoints."""
