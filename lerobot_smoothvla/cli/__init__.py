"""Commands: `smoothvla demos | grpo | doctor | eval | report | score | export | demo`."""
