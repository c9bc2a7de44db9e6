"""What speculative decoding is: the tree, the sampler, the rules of verification and the loop. Torch only."""
