"""Plays conversations with a pair and measures what comes back."""
