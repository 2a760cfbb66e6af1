"""Training: the trainer of all stages (`trainer.py`), one module for each stage; the recipes are in `assets/recipes/`."""
