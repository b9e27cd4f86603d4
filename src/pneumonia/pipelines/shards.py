"""Bulk scoring in shards: deal images out, score one shard, put the tables together."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from pneumonia import contract
from pneumonia.errors import BadInput
from pneumonia.files import write_text
from pneumonia.pipelines.retry import patiently

SCORES_FILE = "scores.csv"
CONCURRENCY, RETRY_FOR_S, TIMEOUT_S = 8, 120.0, 30.0


def list_shards(images: str, shards: int, out: Path) -> list[int]:
    """Write the paths of `images` (folder or pattern) to <out>/<number>.txt, one a line; returns the numbers.

    Raises BadInput where there is no image, or an archive, whose members cannot be dealt out.
    """
    from pneumonia.inference.inputs import Inputs

    names = [item.name for item in Inputs([images]) if not item.serial]
    if not names:
        raise BadInput(f"{images}: no image files; give a folder or pattern of them, and unpack archives first")
    count = max(1, min(shards, len(names)))
    for number in range(count):
        # Every count-th, so that no shard gets all of the large ones.
        write_text(out / f"{number}.txt", "".join(f"{name}\n" for name in names[number::count]))
    print(f"score: {len(names)} images in {count} shards", file=sys.stderr)
    return list(range(count))


def score_shard(number: int, lists: Path, bundle: Path, server: str, out: Path) -> None:
    """Score the images of <lists>/<number>.txt into <out>/scores.csv, by the model at `bundle` or by `server`."""
    from pneumonia.inference.inputs import Inputs
    from pneumonia.inference.onnx_runtime import OnnxPredictor
    from pneumonia.inference.score import from_server, in_process, score
    from pneumonia.inference.triton_client import TritonPredictor

    if server:
        patiently(lambda: TritonPredictor(server, "http", TIMEOUT_S))
        answerer = from_server(lambda: TritonPredictor(server, "http", TIMEOUT_S), CONCURRENCY, RETRY_FOR_S)
        model = server
    else:
        predictor = OnnxPredictor(bundle, "auto")
        answerer, model = in_process(predictor), predictor.bundle.model_id
    score(Inputs([f"@{lists / f'{number}.txt'}"]), out / SCORES_FILE, answerer, {"shard": number, "model": model})


def merge_scores(shards: Sequence[Path], out: Path) -> dict[str, int]:
    """Put <shard>/scores.csv of all shards into <out>/scores.csv, rows by file name; returns counts by what they are.

    Raises BadInput where an image is in two shards, or tables do not have the same columns.
    """
    rows: dict[str, dict[str, str]] = {}
    columns: list[str] = []
    for shard in shards:
        with (shard / SCORES_FILE).open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
            reader = csv.DictReader(stream)
            columns = columns or list(reader.fieldnames or ())
            for row in reader:
                if row["filename"] in rows or list(row) != columns:
                    raise BadInput(f"{shard}: {row['filename']} is in two shards, or its columns differ; score again")
                rows[row["filename"]] = row
    out.mkdir(parents=True, exist_ok=True)
    with (out / SCORES_FILE).open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[name] for name in sorted(rows))
    answers = [row["prediction"] for row in rows.values()]
    counts = {f"predicted_{label}": answers.count(label) for label in contract.LABELS}
    return {"images": len(rows), "errors": sum(bool(row["error"]) for row in rows.values()), **counts}
