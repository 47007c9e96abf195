"""Group relative policy optimisation: objective, configuration, training."""
