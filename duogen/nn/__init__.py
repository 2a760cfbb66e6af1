"""Tensors in, tensors out: no files, no tokens, no devices chosen."""
