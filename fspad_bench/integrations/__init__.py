"""Plugins for other libraries: pytest, transformers."""
