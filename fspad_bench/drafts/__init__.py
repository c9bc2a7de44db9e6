"""What decoders with a draft network share.

The network's parts, its cache, its trees, its files.
"""
