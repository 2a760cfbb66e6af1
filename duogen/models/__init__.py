"""A pair's parts at work: opened, placed, adapted, and fed with tokens."""
