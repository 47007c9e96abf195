"""LIBERO, driven one action chunk at a time."""
