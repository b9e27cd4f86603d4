"""What the process that children are forked from has imported."""

from __future__ import annotations

import onnxruntime  # noqa: F401
import tritonclient.http  # noqa: F401

import pneumonia.cli.app
import pneumonia.cli.data
import pneumonia.config.compose
import pneumonia.data.prepare
import pneumonia.data.sources.folder
import pneumonia.data.sources.phantom
import pneumonia.evaluation.evaluate
import pneumonia.export.to_onnx
import pneumonia.inference.onnx_runtime
import pneumonia.inference.triton_client
import pneumonia.release.publish
import pneumonia.training.train
import pneumonia.triton.repository
import pneumonia.triton.server  # noqa: F401
