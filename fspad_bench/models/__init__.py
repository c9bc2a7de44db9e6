"""Which targets there are, and how one is loaded."""
