"""Numerical kernels behind the noise and the neurons; `reference` runs on any device."""
