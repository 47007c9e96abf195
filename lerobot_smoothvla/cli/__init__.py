"""Commands: `smoothvla demos | grpo | eval`."""
