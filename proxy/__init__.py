"""Tollkeeper: an OpenAI-compatible reverse proxy with the meter built in."""

__version__ = "0.1.0"
