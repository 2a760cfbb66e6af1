"""The procedural picture world: it makes training and evaluation data and is never imported while serving."""
