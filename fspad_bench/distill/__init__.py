"""Training data: a target's own conversations, or given ones in its format."""
