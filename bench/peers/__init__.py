"""DuoGen beside diffusers' pipelines and transformers' `generate`, in one run, with the same weights."""
