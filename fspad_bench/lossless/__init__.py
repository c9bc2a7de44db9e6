"""Proofs that a decoder is lossless, and proofs that these proofs can fail."""
