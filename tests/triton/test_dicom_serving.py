"""DICOM files through the command line and the server: the answers of the same picture, and clear refusals."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pneumonia import contract
from pneumonia.bundle import Bundle
from pneumonia.errors import DependencyMissing, ImageError
from pneumonia.inference.predictor import open_predictor
from pneumonia.triton.server import TritonServer
from tests.bundles import serving, xray
from tests.dicoms import NAME, dicom, gradient, jpeg_dicom
from tests.triton.test_serving import as_json, outputs, post


def test_the_server_reads_what_the_library_reads(bundle: Bundle, server: TritonServer) -> None:
    images = [
        dicom(gradient()),
        dicom(gradient(12), 12, PhotometricInterpretation="MONOCHROME1", WindowCenter=1000, WindowWidth=900),
        jpeg_dicom(gradient()),
    ]
    expected = open_predictor("onnx", bundle.path).predict(images)
    for protocol in contract.PROTOCOLS:
        answers = open_predictor("triton", url=server.address(protocol), protocol=protocol).predict(images)
        assert [a.label for a in answers] == [a.label for a in expected]
        assert [a.probability for a in answers] == pytest.approx([a.probability for a in expected], abs=1e-6)
    status, body = post(server, as_json(*images))
    assert status == 200
    assert outputs(body)["probability"] == pytest.approx([a.probability for a in expected], abs=1e-6)
    assert post(server, images[0], {"Inference-Header-Content-Length": "0"})[0] == 200


def test_another_modality_is_refused_without_naming_the_patient(server: TritonServer) -> None:
    scan = dicom(gradient(), Modality="CT")
    with pytest.raises(ImageError, match="image 0: DICOM modality CT; a chest radiograph was expected"):
        open_predictor("triton", url=server.address("http")).predict([scan])
    post(server, as_json(dicom(gradient(), Rows=480)))
    assert server._log is not None
    assert NAME not in server._log.read_text("utf-8", "replace")


def test_infer_takes_a_dicom_file(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "IM0001").write_bytes(dicom(gradient(12), 12))
    code = "from pneumonia.cli.app import main; main()"
    run = [sys.executable, "-c", code, "infer", "IM0001", "--bundle", str(bundle.path)]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["filename"] == "IM0001"
    run[2] = f"import sys; sys.modules['pydicom'] = None; {code}"
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (4, "")
    need = "this is a DICOM file, and reading it needs pydicom: pip install 'pneumonia[dicom]'"
    assert done.stderr == f"error: IM0001: {need}\n"


def test_a_server_without_pydicom_says_so_and_answers_the_rest(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The server would put its own code in the place of this.
    monkeypatch.setattr("pneumonia.triton.server.make_current", lambda repository: None)
    repository = Path(shutil.copytree(release, tmp_path / "repository"))
    code = repository / contract.ENSEMBLE / contract.MODEL_VERSION / "model.py"
    text = code.read_text().replace("import sys\n", "import sys\nsys.modules['pydicom'] = None\n", 1)
    code.unlink()
    code.write_text(text)
    with serving(repository) as server:
        status, body = post(server, as_json(dicom(gradient())))
        assert status == 501
        assert "pip install 'pneumonia[dicom]'" in json.loads(body)["error"]
        for protocol in contract.PROTOCOLS:
            client = open_predictor("triton", url=server.address(protocol), protocol=protocol)
            with pytest.raises(DependencyMissing, match="reading it needs pydicom"):
                client.predict([dicom(gradient())])
            assert len(client.predict([xray(1)])) == 1
