"""The training loop and its parts: checkpoints, processes, SIGTERM, curve. It knows no CT."""
