"""Bytes to named fields and tensors, and back."""
