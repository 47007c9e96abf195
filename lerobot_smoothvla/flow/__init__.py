"""Flow-matching policies: the seam, samplers, noises and probability ratios."""
