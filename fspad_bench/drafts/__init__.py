"""What decoders with a draft network share: the network's parts, its cache, its trees, its files."""
