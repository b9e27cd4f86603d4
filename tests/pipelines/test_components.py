"""Components by their Python functions, with the artifacts that Kubeflow would give them."""

from __future__ import annotations

import itertools
import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from pneumonia import __version__, contract
from pneumonia.bundle import Bundle, open_bundle
from pneumonia.data.prepare import PreparedData
from pneumonia.pipelines.notify import notify as say
from pneumonia.pipelines.settings import write_settings
from pneumonia.release_manifest import verify_release
from tests.phantoms import OPEN_GATE, SMOKE
from tests.pipelines.kubeflow import FakeKubeflow, serve, workflow

dsl = pytest.importorskip("kfp.dsl", reason="kfp is not installed; pip install 'pneumonia[pipelines]'")
VERSION = {"library_version": __version__}


def artifact(kind: str, path: Path) -> Any:
    """A kfp artifact at `path`, without metadata."""
    made = getattr(dsl, kind)(name=path.name, uri=str(path), metadata={})
    made.path = str(path)
    return made


def function(name: str) -> Any:
    """The Python function of components/<name>."""
    from importlib import import_module

    return getattr(import_module(f"components.{name}.component"), name).python_func


def settings(folder: Path, *overrides: str) -> Any:
    """The settings that fetch hands on, as an artifact."""
    given = [*SMOKE, f"output_dir={folder}", "evaluation.bootstrap_samples=100", *overrides]
    path = folder / f"settings-{uuid.uuid4().hex}.yaml"
    write_settings(given, path)
    return artifact("Artifact", path)


@pytest.fixture(scope="module")
def evaluated(trained: Bundle, prepared: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the component evaluate leaves."""
    folder = Path(tmp_path_factory.mktemp("evaluate"))
    out = {
        "evaluation": artifact("Artifact", folder / "evaluation"),
        "metrics": artifact("Metrics", folder / "metrics"),
        "curves": artifact("ClassificationMetrics", folder / "curves"),
        "report": artifact("HTML", folder / "report.html"),
    }
    given = {"trained": artifact("Model", trained.path), "prepared": artifact("Dataset", prepared.path)}
    function("evaluate")(False, **VERSION, settings=settings(folder), **given, **out)
    return out


def test_the_user_interface_gets_figures_curve_matrix_and_report(evaluated: dict[str, Any]) -> None:
    measured = json.loads((Path(evaluated["evaluation"].path) / contract.METRICS_FILE).read_text())
    assert evaluated["metrics"].metadata["test_recall"] == measured["test"]["recall"]["value"]
    worst = measured["stress"]["worst"]["auroc"]["value"]
    assert evaluated["metrics"].metadata["stress_worst_auroc"] == worst
    shown = evaluated["curves"].metadata
    rows = [row["row"] for row in shown["confusionMatrix"]["rows"]]
    assert sum(map(sum, rows)) == measured["images"]
    recall = rows[contract.PNEUMONIA][contract.PNEUMONIA] / sum(rows[contract.PNEUMONIA])
    assert recall == pytest.approx(measured["test"]["recall"]["value"], abs=1e-6)
    curve = shown["confidenceMetrics"]
    assert (curve[0]["falsePositiveRate"], curve[-1]["recall"]) == (0, 1)
    # The area under the curve that is shown is the AUROC that was measured.
    pairs = itertools.pairwise(curve)
    area = sum((b["falsePositiveRate"] - a["falsePositiveRate"]) * (a["recall"] + b["recall"]) / 2 for a, b in pairs)
    assert area == pytest.approx(measured["test"]["auroc"]["value"], abs=0.01)
    assert max(point["confidenceThreshold"] for point in curve) <= 1
    json.dumps(shown, allow_nan=False)
    assert "<html" in Path(evaluated["report"].path).read_text("utf-8").lower()


def test_a_refusing_gate_writes_no_verdict_and_says_why_last(
    evaluated: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict = artifact("Artifact", tmp_path / "verdict.json")
    with pytest.raises(SystemExit) as caught:
        function("gate")(
            **VERSION, settings=settings(tmp_path, "gate.recall=1"), evaluation=evaluated["evaluation"], verdict=verdict
        )
    assert caught.value.code == 5
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: the gate refused this model: ")
    assert not Path(verdict.path).exists()


def test_export_hands_the_bundle_on_with_its_findings(
    evaluated: dict[str, Any], trained: Bundle, prepared: PreparedData, tmp_path: Path
) -> None:
    verdict = artifact("Artifact", tmp_path / "verdict.json")
    gate = function("gate")
    opened = {"settings": settings(tmp_path, *OPEN_GATE), "evaluation": evaluated["evaluation"], "verdict": verdict}
    said = gate(**VERSION, **opened)
    assert said == gate(**VERSION, **opened), "the same verdict must let the cache answer"
    inputs = {"trained": artifact("Model", trained.path), "prepared": artifact("Dataset", prepared.path)}
    bundle, metrics = artifact("Model", tmp_path / "bundle"), artifact("Metrics", tmp_path / "metrics")
    report = artifact("HTML", tmp_path / "parity.html")
    shown = {"bundle": bundle, "metrics": metrics, "report": report}
    evaluation = evaluated["evaluation"]
    function("export")(said, False, **VERSION, settings=settings(tmp_path), evaluation=evaluation, **inputs, **shown)
    made = open_bundle(Path(bundle.path))
    assert made.has(contract.ONNX_FILE)
    assert made.has(contract.PROBE_FILE)
    assert bundle.metadata["model_id"] == made.model_id
    assert bundle.metadata["synthetic"] is True
    assert metrics.metadata["onnx_label_agreement"] == 1.0
    assert "onnx" in Path(report.path).read_text("utf-8")


class Webhook:
    """Keeps what it is sent and answers with `status`."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.received: list[Any] = []

    def answer(self, method: str, path: str, query: Any, body: Any) -> tuple[int, Any]:
        self.received.append(body)
        return self.status, {}


def test_a_webhook_is_told_how_the_run_ended() -> None:
    hook = Webhook(200)
    with serve(hook) as url:
        say(url, "run-1", "FAILED", "the gate refused this model")
    assert hook.received == [{"text": "pneumonia: run-1: failed: the gate refused this model"}]


def test_a_webhook_that_fails_does_not_fail_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    with serve(Webhook(500)) as url:
        say(url, "run-1", "SUCCEEDED", "")
    say("http://127.0.0.1:9", "run-1", "SUCCEEDED", "")
    say("no url", "run-1", "SUCCEEDED", "")
    say("http://hooks.example/T 0/secret", "run-1", "SUCCEEDED", "")
    said = capsys.readouterr().err
    assert said.count("was not delivered") == 4
    assert "secret" not in said


@pytest.mark.parametrize(
    ("steps", "history", "words"),
    [
        ([("train", "Succeeded", ""), ("notify", "Running", "")], "RUNNING", "succeeded"),
        ([("gate", "Failed", "OOMKilled"), ("notify", "Running", "")], "RUNNING", "failed: step gate: failed: OOMK"),
        ([("train", "Failed", "Step exceeded its deadline")], "CANCELING", "terminated by hand while train ran"),
        ([("train", "Running", ""), ("notify", "Running", "")], "RUNNING", "ended; whether it succeeded is not known"),
        ([("train", "Omitted", "omitted")], "RUNNING", "failed outside its steps"),
    ],
)
def test_the_exit_handler_asks_what_became_of_the_run(
    monkeypatch: pytest.MonkeyPatch, steps: list[tuple[str, str, str]], history: str, words: str
) -> None:
    kubeflow, hook = FakeKubeflow(), Webhook(200)
    states = [{"state": history, "update_time": "2026-11-01T10:00:00Z"}]
    kubeflow.runs["r1"] = {"run_id": "r1", "state": history, "created_at": "2026-11-01T10:00:00Z"}
    kubeflow.runs["r1"] |= {"finished_at": "1970-01-01T00:00:00Z", "state_history": states}
    kubeflow.workflows["r1"] = workflow(*steps)
    monkeypatch.setattr("pneumonia.pipelines.notify.PAUSES_S", ())
    with serve(kubeflow) as host, serve(hook) as url:
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", host)
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
        # As in a step's process, where the kfp package has no client.
        monkeypatch.setenv("_KFP_RUNTIME", "true")
        say(url, "run-1", "RUNNING", "", "r1")
    assert hook.received[0]["text"].startswith(f"pneumonia: run-1: {words}")


def test_the_exit_handler_says_what_it_was_given_where_nobody_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pneumonia.pipelines.notify.PAUSES_S", ())
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    say("", "run-1", "COMPLETE", "", "r1")
    assert capsys.readouterr().err.splitlines()[-1] == "notify: pneumonia: run-1: succeeded"


def test_a_refused_canary_fails_the_pipeline_after_its_reasons_were_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = tmp_path / "deployed.json"
    for outcome, reasons in (("promoted", []), ("refused", ["3 of 40 probe images get another label", "p95 is 9 ms"])):
        said.write_text(json.dumps({"uri": "s3://b/r", "model_id": "m@1", "outcome": outcome, "reasons": reasons}))
        given = {**VERSION, "deployed": artifact("Artifact", said)}
        if not reasons:
            function("confirm")(**given)
            continue
        with pytest.raises(SystemExit) as ended:
            function("confirm")(**given)
        assert ended.value.code == 5
        assert [reason in capsys.readouterr().err for reason in reasons[-1:]] == [True]


def test_a_release_on_a_volume_has_the_name_that_servers_know(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pneumonia.pipelines import tasks

    _, _, writes = tasks.VOLUMES["release_volume"]
    monkeypatch.setitem(tasks.VOLUMES, "release_volume", (("publish",), str(tmp_path / "volume"), writes))
    said = artifact("Artifact", tmp_path / "release.json")
    given = {"settings": settings(tmp_path, "tracking.uri=null"), "bundle": artifact("Model", bundle.path), **VERSION}
    place = {"release_root": "s3://not-looked-at", "release_volume": "claim", "s3_endpoint": ""}
    function("publish")(**given, **place, backend="onnxruntime", release=said)
    uri = json.loads(Path(said.path).read_text("utf-8"))["release"]
    assert said.metadata["release"] == uri
    assert f"publish: {said.metadata['model_id']} in {uri}" in capsys.readouterr().err
    assert uri.startswith("pvc://claim/releases/")
    release = tmp_path / "volume" / uri.removeprefix("pvc://claim/")
    assert verify_release(release)["backend"] == "onnxruntime"


def test_a_release_that_no_server_can_read_is_not_deployed(bundle: Bundle, tmp_path: Path) -> None:
    from pneumonia.errors import UsageError
    from pneumonia.pipelines.tasks import deploy_release

    release, out = tmp_path / "release.json", tmp_path / "out.json"
    release.write_text(json.dumps({"release": "/data/releases/0", "model_id": bundle.model_id}))
    with pytest.raises(UsageError, match="no server of the cluster can read"):
        deploy_release(Path(settings(tmp_path).path), release, bundle.path, tmp_path, "ml", "pneumonia", 10, out)
    assert not out.exists()


def test_fetched_images_travel_as_one_archive(tmp_path: Path) -> None:
    from pneumonia.pipelines.tasks import fetch_images, unpack

    out, again = tmp_path / "fetched", tmp_path / "again"
    for path in (out, again):
        fetch_images([*SMOKE, "data.num_images=40"], tmp_path / "settings.yaml", path)
    images, others = (
        sorted(path.name for path in unpack(archive, folder).rglob("*.*") if path.suffix not in (".json", ".csv"))
        for archive, folder in ((out, tmp_path / "images"), (again, tmp_path / "others"))
    )
    assert len(images) == 40
    assert images == others


def test_what_is_no_archive_of_images_is_said(tmp_path: Path) -> None:
    from pneumonia.errors import DataError
    from pneumonia.pipelines.tasks import unpack

    (tmp_path / "fetched").write_text("half an archive")
    with pytest.raises(DataError, match="no archive of fetched images"):
        unpack(tmp_path / "fetched", tmp_path / "images")
