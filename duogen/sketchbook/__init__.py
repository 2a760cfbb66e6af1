"""The procedural picture world. It makes data for training and evaluation and is never imported while serving."""
