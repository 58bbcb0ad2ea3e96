"""Seeds of random numbers."""

from __future__ import annotations

from ctclip_model.errors import ConfigurationError

LARGEST_SEED = 2**64 - 1  # PyTorch's bound, and NumPy takes none below 0


def check_seed(seed: int) -> None:
    """Raises `ConfigurationError` for a seed that NumPy or PyTorch refuses."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= LARGEST_SEED:
        raise ConfigurationError(f"seed {seed!r} is not a whole number from 0 to {LARGEST_SEED}")
