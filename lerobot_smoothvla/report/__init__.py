"""Runs, evaluations and datasets as one HTML page that needs no network."""
