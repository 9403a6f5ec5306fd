"""A reverse proxy that paces export requests, one line per service account."""

__version__ = "0.1.0"
