"""The names, shapes and dtypes that every part agrees on; nothing else in the project spells them again."""

from __future__ import annotations

from typing import Final

LABELS: Final = ("NORMAL", "PNEUMONIA")
"""Class names by index: NORMAL = 0, PNEUMONIA = 1."""
NORMAL: Final = 0
PNEUMONIA: Final = 1

# Preprocessing defaults. A bundle records its own values and every reader takes them from there.
IMAGE_SIZE: Final = 224
RESAMPLE: Final = "bilinear"
SCALED_DECODING: Final = 2.0
"""JPEG files are decoded no smaller than this many times IMAGE_SIZE; docs/adr/0010 has the measurements."""
PIXEL_MEAN: Final = (0.485, 0.456, 0.406)
PIXEL_STD: Final = (0.229, 0.224, 0.225)

# The tensor model: pixel_values FP32 [-1,3,224,224] -> logits FP32 [-1,2].
TENSOR_MODEL: Final = "pneumonia_vit"
TENSOR_INPUT: Final = "pixel_values"
TENSOR_INPUT_DIMS: Final = (3, IMAGE_SIZE, IMAGE_SIZE)
TENSOR_OUTPUT: Final = "logits"
NOT_FINITE: Final = f"{TENSOR_OUTPUT} are not finite"
"""What the message of NoAnswer says, in this process or from a server, which has no status of its own for it."""
TENSOR_OUTPUT_DIMS: Final = (len(LABELS),)

# What is served, public as /v2/models/pneumonia_detection: one model on a processor, with a GPU an ensemble of the
# tensor model and two steps around it.
ENSEMBLE: Final = "pneumonia_detection"
PREPROCESS_MODEL: Final = "pneumonia_preprocess"
POSTPROCESS_MODEL: Final = "pneumonia_postprocess"
ENSEMBLE_INPUT: Final = "image"
OUTPUT_PREDICTION: Final = "prediction"
OUTPUT_CONFIDENCE: Final = "confidence"
OUTPUT_PROBABILITY: Final = "probability"
OUTPUT_THRESHOLD: Final = "threshold"
OUTPUT_UNCERTAIN: Final = "uncertain"
OUTPUT_MODEL_ID: Final = "model_id"
ENSEMBLE_OUTPUTS: Final = {
    OUTPUT_PREDICTION: "BYTES",
    OUTPUT_CONFIDENCE: "FP32",
    OUTPUT_PROBABILITY: "FP32",
    OUTPUT_THRESHOLD: "FP32",
    OUTPUT_UNCERTAIN: "BOOL",
    OUTPUT_MODEL_ID: "BYTES",
}
"""Ensemble outputs and their KServe v2 datatypes, each of shape [-1, 1]."""
MODEL_VERSION: Final = "1"
MAX_BATCH_SIZE: Final = 32
MAX_REQUEST_BYTES: Final = 64 * 2**20
"""Encoded images of one request together; more is refused before anything is decoded."""
REQUEST_LOG_ENV: Final = "PNEUMONIA_REQUEST_LOG"
"""File that the server appends a JSON line to for each answered image; unset: none."""

# ONNX: pinned below what the newest exporter offers, because the serving release may carry an older runtime.
ONNX_OPSET: Final = 18
ONNX_IR_VERSION: Final = 10

# Ports of a Triton server.
HTTP_PORT: Final = 8000
GRPC_PORT: Final = 8001
METRICS_PORT: Final = 8002

# Metrics on that port: the server's own, by model, and what our own code counts.
METRIC_SUCCESS: Final = "nv_inference_request_success"
METRIC_FAILURE: Final = "nv_inference_request_failure"
METRIC_DURATION_US: Final = "nv_inference_request_duration_us"
METRIC_QUEUE_US: Final = "nv_inference_queue_duration_us"
METRIC_PENDING: Final = "nv_inference_pending_request_count"
METRIC_PREDICTIONS: Final = "pneumonia_predictions_total"
"""Counter of images answered, by the label `label`: one of LABELS."""
METRIC_REFUSED: Final = "pneumonia_refused_total"
"""Counter of requests that the Python code refused, each once, by the label `why`: one of REFUSED_WHY."""
REFUSED_WHY: Final = ("image", "failed")
"""image: the client's mistake (400). failed: the server's own (500, and 501 for a format that it cannot read)."""
METRIC_RUNNING: Final = "pneumonia_running_requests"
"""Gauge of requests that are being answered; METRIC_PENDING counts those that still wait."""
METRIC_CONFIDENCE: Final = "pneumonia_confidence"
"""Histogram of `confidence`, with buckets CONFIDENCE_BUCKETS."""
CONFIDENCE_BUCKETS: Final = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)

# Where a server image keeps a release that was built into it. KServe mounts others under /mnt/models.
BAKED_RELEASE: Final = "/opt/pneumonia/release"
MOUNTED_RELEASE: Final = "/mnt/models"
SERVER_COMMAND: Final = "pneumonia-triton"
"""In the server images: `pneumonia-triton REPOSITORY [FLAG...]` becomes Triton with the flags it is given."""
ALLOW_SYNTHETIC_ENV: Final = "PNEUMONIA_ALLOW_SYNTHETIC"
"""The server images refuse a release of a synthetic bundle unless this is 1."""

# Files of a bundle.
BUNDLE_DIR: Final = "models"
BUNDLE_ENV: Final = "PNEUMONIA_BUNDLE"
BUNDLE_SCHEMA_VERSION: Final = 2
BUNDLE_SCHEMAS_READ: Final = (1, 2)
"""1 knew no offset and no `sure`, which a library that reads 1 alone would leave out of its answers."""
BUNDLE_MANIFEST: Final = "bundle.json"
WEIGHTS_FILE: Final = "model.safetensors"
MODEL_CONFIG_FILE: Final = "config.json"
ONNX_FILE: Final = "model.onnx"
INT8_FILE: Final = "model.int8.onnx"
ENGINE_FILE: Final = "model.engine"
FP16_FILE: Final = "model.fp16.onnx"
PROBE_FILE: Final = "probe.json"
PROBE_IMAGES: Final = 64

# Files of a prepared data set.
INDEX_FILE: Final = "index.csv"
PIXELS_FILE: Final = "pixels.npy"
DATA_MANIFEST: Final = "prepared.json"
SPLITS: Final = ("train", "val", "test")
UNUSED: Final = "unused"

# Files of an evaluation.
METRICS_FILE: Final = "metrics.json"
PREDICTIONS_FILE: Final = "predictions.csv"
REPORT_FILE: Final = "report.html"
PLOTS_DIR: Final = "plots"
CARD_FILE: Final = "model_card.md"

# MLflow on one machine: the folder of its database and artifacts, which the environment variable overrides.
TRACKING_DIR: Final = "runs"
TRACKING_DIR_ENV: Final = "PNEUMONIA_TRACKING_DIR"

KUBEFLOW_RUN_ENV: Final = "PNEUMONIA_KUBEFLOW_RUN"
"""Id of the Kubeflow run whose step this process is; the pipeline sets it."""

# A release: <root>/releases/<sha-256 of what it holds>/<model>/1/, its manifest written last.
RELEASES_DIR: Final = "releases"
RELEASE_MANIFEST: Final = "release.json"

INFER_MODES: Final = ("onnx", "pytorch", "triton", "tensorrt")
DEVICES: Final = ("auto", "cpu", "cuda")
PROTOCOLS: Final = ("http", "grpc")
