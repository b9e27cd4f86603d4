"""Pneumonia: train a chest X-ray classifier that can be trusted, and serve it on Kubernetes."""

__version__ = "0.1.0"
