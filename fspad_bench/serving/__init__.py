"""Engines that others wrote, reached over HTTP: what is asked of them and what they answer."""
