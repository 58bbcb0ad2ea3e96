"""Kernels of the image encoder for GPUs, in Triton. Without Triton the encoder takes PyTorch's own operators."""
