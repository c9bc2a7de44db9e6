"""Errors, paths, progress and the machine: what every room may use."""
