"""Commands: `smoothvla demos | doctor | grpo | eval | demo`."""
