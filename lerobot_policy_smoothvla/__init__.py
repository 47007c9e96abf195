"""Plugin hook."""
import lerobot_smoothvla  # noqa: F401
