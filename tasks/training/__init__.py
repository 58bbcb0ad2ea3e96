"""Trainings: manifests, processes, GPU orders, and the records of steps and models."""
