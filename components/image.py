"""The images that steps run in: the one place that names them."""

from __future__ import annotations

import os

from pneumonia import __version__

STEP_IMAGE = os.environ.get("PNEUMONIA_STEP_IMAGE") or f"pneumonia-step:{__version__}"
"""Read when the pipeline is compiled; PNEUMONIA_STEP_IMAGE names another registry, tag or digest."""
CUDA_IMAGE = os.environ.get("PNEUMONIA_STEP_IMAGE_CUDA") or f"pneumonia-step-cuda:{__version__}"
"""The same for steps on a GPU; PNEUMONIA_STEP_IMAGE_CUDA names another."""
