"""SmoothVLA for LeRobot."""
