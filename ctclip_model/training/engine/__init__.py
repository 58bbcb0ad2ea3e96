"""The training loop and all that it stands on. It knows no CT."""
