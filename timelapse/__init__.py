"""Hydra-configured experiments for image-to-timelapse video diffusion."""

__version__ = "0.1.0"
