"""What makes a policy's motion smoother without training it: the baselines of a smoothness reward."""
