"""Fine-tuned policies on the Hugging Face Hub: their card, and the push."""
