"""Rollouts: starts in, episodes out. Knows no reward."""
