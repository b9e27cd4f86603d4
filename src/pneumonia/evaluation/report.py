"""One self-contained HTML page about an evaluation: figures, plots, and what the model must not be used for."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pneumonia import contract
from pneumonia.evaluation.card import interval, origin_of
from pneumonia.evaluation.stress import FIGURES as STRESS_FIGURES
from pneumonia.files import write_text

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ m.model }}: evaluation</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c1c1c }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { padding: .3rem .8rem; border-bottom: 1px solid #ccc; text-align: right }
td:first-child, th:first-child { text-align: left } .notice { background: #fff3cd; padding: .6rem 1rem }
img { max-width: 100% }
</style></head><body>
{% if m.synthetic %}<p class="notice"><strong>Synthetic data: every image of this evaluation was drawn by a program. The
figures say nothing about real X-rays.</strong></p>{% endif %}
<h1>{{ m.model }}</h1>
{% if m.patients != "named" %}<p class="notice"><strong>Patients are unknown:</strong> images of one patient may lie on
both sides of the split, so these figures can be too good.</p>{% endif %}
{% if m.split.straddling_patients %}<p class="notice"><strong>{{ m.split.straddling_patients }} patients have images in
more than one part of this split</strong> (split.strategy={{ m.split.strategy }}), so these figures are too good.</p>
{% endif %}{% if m.split.note %}<p class="notice">{{ m.split.note }}</p>{% endif %}
<p class="notice">Not a medical device. {{ origin }}</p>
<p>{{ m.images }} test images of {{ m.patients_count }} patients
({{ m.images_by_label.NORMAL }} NORMAL, {{ m.images_by_label.PNEUMONIA }} PNEUMONIA), split: {{ m.split.strategy }}.
Predictive values (ppv, npv) are for a prevalence of {{ m.prevalence }}.
The threshold {{ "%.4f" | format(m.threshold) }} was chosen on validation for a recall of {{ m.recall_target }}, the
temperature is {{ "%.3f" | format(m.temperature) }}. Intervals are 95 %, bootstrapped over patients.</p>
<table><tr><th>test</th><th>at the served threshold</th><th>95 % interval</th><th>at 0.5</th><th>95 % interval</th></tr>
{% for name, item in m.test.items() %}<tr><td>{{ name }}</td><td>{{ show(item.value) }}</td>
<td>{{ interval(item) }}</td>
{% set half = m.test_at_half[name] %}<td>{{ show(half.value) }}</td>
<td>{{ interval(half) }}</td></tr>
{% endfor %}</table>
<table><tr><th></th><th>answered NORMAL</th><th>answered PNEUMONIA</th></tr>
{% for row in m.confusion %}<tr><td>is {{ labels[loop.index0] }}</td><td>{{ row[0] }}</td><td>{{ row[1] }}</td></tr>
{% endfor %}</table>
{% if m.subgroups %}<table><tr><th>subgroup (from file names)</th><th>images</th><th>patients</th>
<th>answered rightly</th><th>95 % interval</th>
{% for name in columns %}<th>{{ name }}</th><th>95 % interval</th>{% endfor %}</tr>
{% for name, item in m.subgroups.items() %}{% set right = item.test[right_of[item.against]] %}<tr><td>{{ name }}</td>
<td>{{ item.images }}</td><td>{{ item.patients }}</td><td>{{ show(item.accuracy) }}</td>
<td>{{ interval(right) }}</td>
{% for name in columns %}{% set figure = item.test[columns[name]] %}<td>{{ show(figure.value) }}</td>
<td>{{ interval(figure) }}</td>{% endfor %}</tr>
{% endfor %}</table>
<p>Recall, specificity and AUROC of a subgroup of one class are set against every test image of the
other class.</p>{% endif %}
{% if m.stress %}<h2>Under changes that leave the label as it is</h2>
<p>{{ m.stress.images }} test images at the served threshold. A model that looks at the lungs does not care how they are
framed; with the centre blanked hardly any lung is left, and a high AUROC there means that the frame gives the class
away. The gate can bound the worst of the changes of framing
({% for name, item in m.stress.worst.items() %}{{ name }} {{ show(item.value) }}{{ ", " if not loop.last }}
{%- endfor %}).</p>
<table><tr><th>change</th><th>of framing</th>{% for name in figures %}<th>{{ name }}</th>{% endfor %}</tr>
<tr><td>none</td><td></td>{% for name in figures %}<td>{{ show(m.test[name].value) }}</td>{% endfor %}</tr>
{% for item in m.stress.changes.values() %}<tr><td>{{ item.title }}</td><td>{{ "yes" if item.framing }}</td>
{% for name in figures %}<td>{{ show(item[name].value) }}</td>{% endfor %}</tr>
{% endfor %}</table>{% endif %}
{% for name, png in plots.items() %}<img alt="{{ name }}" style="width: 49%" src="data:image/png;base64,{{ png }}">
{% endfor %}
{% if worst %}<h2>The worst mistakes</h2><p>Wrong answers, the surest first.</p>
{% for item in worst %}<figure style="display: inline-block; width: 150px; margin: .4rem; vertical-align: top">
<img alt="" src="data:image/jpeg;base64,{{ item.jpeg }}"><figcaption>{{ item.name }}<br>is {{ item.label }},
P(PNEUMONIA) {{ "%.3f" | format(item.probability) }}</figcaption></figure>{% endfor %}{% endif %}
<p>Data digest {{ m.data_digest }}.</p>
</body></html>
"""

_RIGHT_OF = {"NORMAL": "recall", "PNEUMONIA": "specificity", "itself": "accuracy"}
"""What "answered rightly" is called in a subgroup, by what the subgroup is set against."""

_SUBGROUP_COLUMNS = {"recall": "recall", "specificity": "specificity", "AUROC": "auroc"}


def write_report(path: Path, metrics: dict[str, Any], plots: dict[str, bytes], worst: list[dict[str, Any]]) -> None:
    """Write the page for `metrics`, with every plot inside.

    plots: PNG by name. worst: wrong answers to show, each {"name", "label", "probability", "pixels" uint8 (H, W)}.
    """
    from jinja2 import Environment

    def show(value: float | None) -> str:
        return "undefined" if value is None else f"{value:.4f}"

    page = Environment(autoescape=True).from_string(_PAGE)
    pictures = {name.replace("_", " "): base64.b64encode(png).decode() for name, png in plots.items()}
    shown = [{**item, "jpeg": _thumbnail(item["pixels"])} for item in worst]
    words = {
        "origin": origin_of(metrics["source"]),
        "columns": _SUBGROUP_COLUMNS,
        "right_of": _RIGHT_OF,
        "figures": STRESS_FIGURES,
        "interval": interval,
    }
    write_text(path, page.render(m=metrics, labels=contract.LABELS, plots=pictures, show=show, worst=shown, **words))


def _thumbnail(pixels: Any) -> str:
    """uint8 (H, W) to the base64 text of a small JPEG."""
    stream = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).resize((150, 150)).save(stream, "JPEG", quality=80)
    return base64.b64encode(stream.getvalue()).decode()
