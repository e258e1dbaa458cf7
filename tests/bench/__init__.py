"""Measurements of speed and memory, each beside its limit or peer, as one table."""
