"""The version, for every room. Bottom shelf: imports no other room."""

__version__ = "0.1.0"
