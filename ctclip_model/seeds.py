"""Seeds of random numbers."""

from __future__ import annotations

from ctclip_model.errors import ConfigurationError

LARGEST_SEED = 2**64 - 1  # PyTorch's bound, and NumPy takes none below 0

SCIKIT_LEARN_SEEDS = 2**32  # scikit-learn takes none from here on


def scikit_learn_seed(seed: int) -> int:
    """The seed for scikit-learn, whose range is smaller: the remainder."""
    return seed % SCIKIT_LEARN_SEEDS


def check_seed(seed: int) -> None:
    """Raises `ConfigurationError` for a seed that NumPy or PyTorch refuses."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= LARGEST_SEED:
        raise ConfigurationError(f"seed {seed!r} is not a whole number from 0 to {LARGEST_SEED}")
