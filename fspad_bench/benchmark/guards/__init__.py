"""Guards around the code that a run did not write: what a decoder does to the target, to the clock,
to the machine and to the other decoders' turns.
"""
