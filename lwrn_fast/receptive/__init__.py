"""The empirical receptive field of a model before and after chained residual pooling."""

from .field import SHARES, Box, Field, Fields, field, receptive_field

__all__ = ["SHARES", "Box", "Field", "Fields", "field", "receptive_field"]
