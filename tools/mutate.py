#!/usr/bin/env python3
"""Puts faults into the code, one at a time, and asks the tests of that area whether they notice.

    python tools/mutate.py [AREA...] [--faults 20] [--seed 0]

Faults are comparisons, arithmetic, logic and constants that say something else, drawn with a seed. They go into a copy
of the tree; yours stays as it is. A line on stderr for each fault, a JSON object with the survivors on stdout.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SRC = "src/pneumonia"
AREAS: dict[str, tuple[list[str], list[str]]] = {
    "split": (
        [f"{SRC}/data/split.py", f"{SRC}/data/patients.py"],
        ["tests/data/test_split.py", "tests/data/test_patients.py"],
    ),
    "threshold": ([f"{SRC}/core/calibration.py"], ["tests/core/test_calibration.py"]),
    "metrics": ([f"{SRC}/core/metrics.py"], ["tests/core/test_metrics.py"]),
    "answers": ([f"{SRC}/core/prediction.py"], ["tests/core/test_image.py", "tests/core/test_calibration.py"]),
    "gate": ([f"{SRC}/core/gate.py"], ["tests/core/test_gate.py", "tests/evaluation/test_evaluate.py"]),
    "parity": (
        [f"{SRC}/export/parity.py", f"{SRC}/export/spread.py"],
        ["tests/export/test_spread.py", "tests/export/test_to_onnx.py"],
    ),
    "dicom": (
        [f"{SRC}/core/dicom.py", f"{SRC}/core/dicom_tones.py", f"{SRC}/core/dicom_header.py"],
        ["tests/core/test_dicom.py", "tests/core/test_odd_dicom.py", "tests/core/test_dcmtk.py"],
    ),
    "retention": ([f"{SRC}/rollout/retention.py"], ["tests/rollout", "tests/release"]),
    "rollout": ([f"{SRC}/rollout/rollout.py", f"{SRC}/rollout/checks.py"], ["tests/rollout"]),
    "exposure": (
        [f"helm/pneumonia/templates/{name}.yaml" for name in ("networkpolicy", "closeroutes", "inferenceservice")],
        ["tests/helm"],
    ),
}
"""Files that get faults, and the tests that should notice."""
TIMEOUT_S = 300

_COMPARE = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
            ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is}  # fmt: skip
_ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
               ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd}  # fmt: skip
_TEMPLATE = [(r"\btrue\b", "false"), (r"\bfalse\b", "true"), (r"\beq\b", "ne"), (r"\bif not\b", "if"),
             (r"\band\b", "or"), (r"\bif \(?\.Values", "if not .Values"), (r"\b(\d{2,5})\b", "1")]  # fmt: skip


def places_of(path: Path) -> list[tuple[int, int]]:
    """Every fault that a file can get, as the place and the kind that `with_fault` takes."""
    text = path.read_text("utf-8")
    if path.suffix != ".py":
        return [
            (number, kind)
            for number, line in enumerate(text.splitlines())
            for kind, (pattern, _) in enumerate(_TEMPLATE)
            if re.search(pattern, line) and not line.lstrip().startswith(("#", "{{/*", "{{- /*"))
        ]
    # Asked of a copy, which the faults spoil.
    nodes = list(ast.walk(ast.parse(text)))
    return [(number, kind) for number, node in enumerate(nodes) for kind in (0, 1) if _put_into(copy.copy(node), kind)]


def with_fault(path: Path, place: int, kind: int) -> tuple[int, str, str]:
    """The line of a fault, what it changes, and the file's whole text with it."""
    text = path.read_text("utf-8")
    if path.suffix != ".py":
        lines = text.splitlines(keepends=True)
        before, (pattern, other) = lines[place], _TEMPLATE[kind]
        lines[place] = re.sub(pattern, other, before, count=1)
        return place + 1, f"{before.strip()} -> {lines[place].strip()}", "".join(lines)
    tree = ast.parse(text)
    node = list(ast.walk(tree))[place]
    said = _put_into(node, kind)
    return getattr(node, "lineno", 0), said, ast.unparse(ast.fix_missing_locations(tree))


def _put_into(node: ast.AST, change: int) -> str:
    """Put a fault into the node and say which; empty where it takes none of this kind."""
    if isinstance(node, ast.Compare) and change == 0 and type(node.ops[0]) in _COMPARE:
        before, node.ops = type(node.ops[0]), [_COMPARE[type(node.ops[0])](), *node.ops[1:]]
        return f"{before.__name__} -> {type(node.ops[0]).__name__}"
    if isinstance(node, ast.BinOp) and change == 0 and type(node.op) in _ARITHMETIC:
        before_op, node.op = type(node.op), _ARITHMETIC[type(node.op)]()
        return f"{before_op.__name__} -> {type(node.op).__name__}"
    if isinstance(node, ast.BoolOp) and change == 0:
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        return f"-> {type(node.op).__name__}"
    if isinstance(node, ast.UnaryOp) and change == 0 and isinstance(node.op, ast.Not):
        node.op = ast.UAdd()
        node.operand = ast.Call(ast.Name("bool", ast.Load()), [node.operand], [])
        return "not is gone"
    # A bool is an int too, and no number.
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        number, node.value = node.value, node.value + 1 if change == 0 else node.value / 2
        return f"{number} -> {node.value}" if number != node.value else ""
    return ""


def noticed(tree: Path, tests: list[str]) -> bool:
    """Whether the tests fail in the copy of the tree; a run that never ends counts as failed."""
    ours = {"PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(command, cwd=tree, env={**os.environ, **ours}, capture_output=True, timeout=TIMEOUT_S)
        return done.returncode != 0
    except subprocess.TimeoutExpired:
        return True


def run_area(area: str, faults: int, seed: int, tree: Path) -> dict[str, object]:
    """Put up to `faults` faults into an area's files, one at a time."""
    files, tests = AREAS[area]
    if noticed(tree, tests):
        raise SystemExit(f"error: {area}: its tests fail without a fault; run them first: pytest {' '.join(tests)}")
    known = [(file, number, kind) for file in files for number, kind in places_of(ROOT / file)]
    drawn = random.Random(seed).sample(known, min(faults, len(known)))
    survivors = []
    for file, number, kind in drawn:
        line, said, text = with_fault(ROOT / file, number, kind)
        began, place = time.monotonic(), tree / file
        kept = place.read_text("utf-8")
        place.write_text(text, "utf-8")
        caught = noticed(tree, tests)
        place.write_text(kept, "utf-8")
        verdict = "caught" if caught else "SURVIVED"
        print(
            f"{area}: {file}:{line}: {said}: {verdict}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True
        )
        survivors += [] if caught else [f"{file}:{line}: {said}"]
    return {"faults": len(drawn), "of": len(known), "caught": len(drawn) - len(survivors), "survivors": survivors}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("areas", nargs="*", metavar="AREA", help=f"of {', '.join(AREAS)}; default: all")
    parser.add_argument("--faults", type=int, default=20, help="faults in each area")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if unknown := set(given.areas) - set(AREAS):
        parser.error(f"{', '.join(sorted(unknown))}: not an area; they are {', '.join(AREAS)}")
    with tempfile.TemporaryDirectory(prefix="pneumonia-mutate.") as folder:
        tree = Path(folder) / ROOT.name
        listed = subprocess.run(
            ["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, check=True
        ).stdout
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, tree / name)
        results = {area: run_area(area, given.faults, given.seed, tree) for area in given.areas or AREAS}
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
