"""Pneumonia: train a chest X-ray classifier that can be trusted, and serve it on Kubernetes."""

import os

# ONNX Runtime's own builds report each process and model to Microsoft unless this is set before they are imported.
# A person who wants that sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
