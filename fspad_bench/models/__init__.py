"""Targets: which there are, and how one is loaded."""
