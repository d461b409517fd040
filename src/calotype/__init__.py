"""Calotype: a self-hosted system for virtual-machine images."""

__version__ = "0.1.0"
