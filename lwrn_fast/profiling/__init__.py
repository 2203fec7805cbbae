"""Timing: models layer by layer on each backend, and models and ops next to other engines."""
