"""Data sets of a target's own conversations, for training drafts."""
