"""One model on one device: sessions, caches, attention, forwards, and the loop that runs on a GPU."""
