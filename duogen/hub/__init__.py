"""Pairs on this machine and on the hub: which there are, what they need, how they are fetched, assembled and opened."""
