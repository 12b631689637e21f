"""The version of this package, under its name of 0.3."""

from blindai._native import __version__

__all__ = ["__version__"]
