"""The Hugging Face Hub: requests, files, models."""
