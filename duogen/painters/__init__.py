"""Painters: what turns words and earlier pictures into the next picture."""
