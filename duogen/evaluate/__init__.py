"""Evaluation: play conversations with a pair and measure the answers."""
