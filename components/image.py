"""The image every step runs in: the one place that names it."""

from __future__ import annotations

import os

from pneumonia import __version__

STEP_IMAGE = os.environ.get("PNEUMONIA_STEP_IMAGE") or f"pneumonia-step:{__version__}"
"""Read when the pipeline is compiled; PNEUMONIA_STEP_IMAGE names another registry, tag or digest."""
