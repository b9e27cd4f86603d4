#!/usr/bin/env python3
"""Writes the Helm chart's values.schema.json and README.md from its values.yaml, files/contract.json from the contract.

The comment above a key documents it; a key without one is an error. `# @schema {...}` among those lines narrows the
schema that the default's type gives. Every object is closed unless its own schema opens it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pneumonia import contract

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "helm" / "pneumonia"
TYPES = {
    "tag:yaml.org,2002:str": "string",
    "tag:yaml.org,2002:int": "integer",
    "tag:yaml.org,2002:float": "number",
    "tag:yaml.org,2002:bool": "boolean",
    "tag:yaml.org,2002:map": "object",
    "tag:yaml.org,2002:seq": "array",
}
MARK = "@schema "
CONTRACT = (
    "ENSEMBLE", "ENSEMBLE_INPUT", "LABELS", "PNEUMONIA", "HTTP_PORT", "GRPC_PORT", "METRICS_PORT", "OUTPUT_PREDICTION",
    "OUTPUT_CONFIDENCE", "OUTPUT_PROBABILITY", "OUTPUT_THRESHOLD", "OUTPUT_MODEL_ID", "RELEASES_DIR", "BAKED_RELEASE",
    "MOUNTED_RELEASE", "SERVER_COMMAND", "ALLOW_SYNTHETIC_ENV", "METRIC_SUCCESS", "METRIC_FAILURE",
    "METRIC_DURATION_US", "METRIC_QUEUE_US", "METRIC_PENDING", "METRIC_PREDICTIONS", "METRIC_CONFIDENCE",
    "METRIC_REFUSED",
)  # fmt: skip
"""What the templates take from pneumonia.contract, so that no name stands in two places."""
INTRO = """\
# pneumonia

{description}. Generated from `values.yaml` by `make generate`; do not edit.

```sh
helm install pneumonia helm/pneumonia --namespace pneumonia --set image.repository=registry.example.com/pneumonia-triton
helm test pneumonia --namespace pneumonia
```

It needs a cluster with KServe in Standard mode: [manifests](../../manifests/README.md). Operating it:
[operate.md](../../docs/operate.md); what is exposed: [security.md](../../docs/security.md); versions:
[compatibility.md](../../docs/compatibility.md). Whole examples are in [ci/](ci).

| value | type | default | meaning |
|---|---|---|---|
"""


@dataclass(frozen=True)
class Value:
    """One key of values.yaml. path and parent: dotted; own: what its @schema line says."""

    path: str
    parent: str
    name: str
    node: yaml.Node
    text: str
    own: dict[str, Any]


def comment_above(lines: Sequence[str], line: int) -> list[str]:
    """Comment lines directly above line number `line` (from 0), without their marks."""
    found: list[str] = []
    while line > 0 and lines[line - 1].lstrip().startswith("#"):
        line -= 1
        found.insert(0, lines[line].lstrip().lstrip("#").strip())
    return found


def values(node: yaml.MappingNode, lines: Sequence[str], parent: str = "") -> Iterator[Value]:
    """Every key below `node`, each before its children."""
    for key, child in node.value:
        path = f"{parent}.{key.value}".lstrip(".")
        comment = comment_above(lines, key.start_mark.line)
        marked = [line.removeprefix(MARK) for line in comment if line.startswith(MARK)]
        text = " ".join(line for line in comment if not line.startswith(MARK))
        if not text:
            raise SystemExit(f"error: values.yaml: {path} has no comment above it; say what it does")
        yield Value(path, parent, key.value, child, text, json.loads("".join(marked) or "{}"))
        if isinstance(child, yaml.MappingNode):
            yield from values(child, lines, path)


def schema(found: Sequence[Value]) -> dict[str, Any]:
    """The JSON schema of the values."""

    def closed() -> dict[str, Any]:
        return {"type": "object", "additionalProperties": False, "properties": {}}

    root: dict[str, Any] = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Values"} | closed()
    # Helm hands every chart this key; subcharts use it.
    root["properties"]["global"] = {"type": "object"}
    objects = {"": root}
    for value in found:
        kind = TYPES[value.node.tag]
        entry: dict[str, Any] = {"type": kind, "description": value.text}
        if kind == "object":
            entry |= closed()
        objects[value.parent]["properties"][value.name] = entry | value.own
        if kind == "object":
            objects[value.path] = objects[value.parent]["properties"][value.name]
    return root


def readme(found: Sequence[Value], description: str) -> str:
    """The table of every value that is not itself a table of documented ones."""
    rows = []
    for value in found:
        if isinstance(value.node, yaml.MappingNode) and value.node.value:
            continue
        default = json.dumps(yaml.safe_load(yaml.serialize(value.node)))
        text = value.text.replace("|", "\\|").replace("<", "&lt;")
        kind = value.own.get("type", TYPES[value.node.tag])
        allowed = value.own.get("enum")
        shown = ", ".join(f"`{item}`" for item in allowed) if allowed else kind
        rows.append(f"| `{value.path}` | {shown} | `{default}` | {text} |")
    return INTRO.format(description=description) + "\n".join(rows) + "\n"


def generate(chart: Path) -> dict[Path, str]:
    """The generated files and what belongs into each."""
    text = (chart / "values.yaml").read_text("utf-8")
    node = yaml.compose(text)
    if not isinstance(node, yaml.MappingNode):
        raise SystemExit(f"error: {chart / 'values.yaml'}: no mapping")
    found = list(values(node, text.splitlines()))
    description = yaml.safe_load((chart / "Chart.yaml").read_text("utf-8"))["description"]
    return {
        chart / "values.schema.json": json.dumps(schema(found), indent=2) + "\n",
        chart / "README.md": readme(found, description),
        chart / "files" / "contract.json": json.dumps({name: getattr(contract, name) for name in CONTRACT}, indent=2)
        + "\n",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments = parser.parse_args()
    stale = [path for path, text in generate(CHART).items() if not path.exists() or path.read_text("utf-8") != text]
    if not arguments.check:
        for path, text in generate(CHART).items():
            path.write_text(text, "utf-8")
        return 0
    for path in stale:
        print(f"error: {path.relative_to(ROOT)} differs from values.yaml; run `make generate`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
