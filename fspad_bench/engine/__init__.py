"""One model on one device.

Sessions, caches, attention, forwards, and the loop that runs on a GPU.
"""
