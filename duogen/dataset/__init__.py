"""A user's training data: its format, its readers, its description."""
