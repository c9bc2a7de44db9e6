"""One model, on one device or several.

Sessions, caches, attention, forwards, and the loop that runs on a GPU.
"""
