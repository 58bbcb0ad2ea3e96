"""The Hugging Face Hub: requests and their retries, files, models."""
