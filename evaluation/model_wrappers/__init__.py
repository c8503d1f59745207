"""Models as the runner sees them: what they can do, and two calls."""

from .base import Model
from .opening import open_model

__all__ = ["Model", "open_model"]
