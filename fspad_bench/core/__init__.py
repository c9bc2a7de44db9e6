"""What speculative decoding is.

The tree, the sampler, the rules of verification and the loop. Torch only.
"""
