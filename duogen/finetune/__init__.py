"""Fine-tuning: a user's dataset and a pair in, an adapter out."""
