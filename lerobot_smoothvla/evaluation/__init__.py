"""Evaluation on given starts, and the statistics of its comparison."""
