"""The Python models that Triton loads; each is copied into a model repository as model.py."""
