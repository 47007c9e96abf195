"""What is wrong with a run, in a minute or two, before hours are spent on it."""
