"""The layouts of training data that are read, one module each; `readers.py` tries them in order."""
