"""A tracking server that is none is told before training, and one that is lost costs no result."""

from __future__ import annotations

import dataclasses
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pneumonia.config.schema import Config
from pneumonia.data.prepare import PreparedData
from pneumonia.errors import ServerUnavailable
from pneumonia.training.tracking import track
from pneumonia.training.train import _portable, train
from tests.file_server import file_server
from tests.phantoms import smoke_config

pytest.importorskip("mlflow", reason="mlflow is not installed; pip install 'pneumonia[train]'")


@pytest.fixture
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user may set, so that a silent server is given up after a second."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        stop = threading.Event()
        yield server.getsockname()[1]
        stop.set()


def at(config: Config, uri: str) -> Config:
    return dataclasses.replace(config, tracking=dataclasses.replace(config.tracking, uri=uri))


def refused(config: Config, prepared: PreparedData, folder: Path) -> str:
    with pytest.raises(ServerUnavailable, match="MLflow cannot use it") as caught:
        train(config, prepared.path, folder / "run" / "bundle")
    assert not (folder / "run" / "checkpoints").exists()
    assert "\n" not in str(caught.value) and "tracking.uri=null" in str(caught.value)
    return str(caught.value)


def test_another_server_on_the_port_is_one_line_before_training(prepared: PreparedData, tmp_path: Path) -> None:
    with file_server() as server:
        for path in ("experiments/get-by-name", "experiments/create"):
            server.files[f"/api/2.0/mlflow/{path}"] = b"<html>a page</html>"
        refused(at(smoke_config(tmp_path), server.address), prepared, tmp_path)


def test_a_server_that_never_answers_is_given_up(
    no_patience: None, silent_port: int, prepared: PreparedData, tmp_path: Path
) -> None:
    refused(at(smoke_config(tmp_path), f"http://127.0.0.1:{silent_port}"), prepared, tmp_path)


def test_a_database_that_is_none_is_one_line_before_training(prepared: PreparedData, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mlflow.db").write_text("not a database " * 1000)
    said = refused(smoke_config(tmp_path, "tracking.uri=local"), prepared, tmp_path)
    assert "give another output_dir" in said


def test_records_that_are_lost_in_the_middle_are_said_once_and_the_next_run_opens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = smoke_config(tmp_path, "tracking.uri=local")
    database = tmp_path / "runs" / "mlflow.db"
    with track(config, "run", {}) as tracker:
        tracker.log({"figure": 1.0}, step=1)
        kept = database.read_bytes()
        database.write_bytes(b"damaged" * (len(kept) // 7))
        for step in (2, 3):
            tracker.log({"figure": 1.0}, step=step)
        tracker.tag("a", "b")
        tracker.keep(Path(__file__))
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(said) == 1 and said[0].startswith("warning: tracking.uri=local takes no more records")
    database.write_bytes(kept)
    with track(config, "run", {}) as tracker:
        tracker.log({"figure": 1.0}, step=1)
    assert "warning" not in capsys.readouterr().err


def test_a_user_of_the_tracker_does_not_travel_with_the_model(tmp_path: Path) -> None:
    config = at(smoke_config(tmp_path), "https://me@mlflow.example/base")
    assert _portable(config)["tracking"]["uri"] == "https://***@mlflow.example/base"
