"""Training: one loop (`loop.py`), one module per stage, recipes in `assets/recipes/`."""
