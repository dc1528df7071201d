"""The two commands of the README as they stand, with the weights served from this machine instead of downloaded."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from pytorchcv.models.model_store import _model_sha1

from gdfq_export.cli import main
from gdfq_export.models.sources import load_model

NETWORK = "mobilenetv2_w1"
VERSION = "v9"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Says nothing."""


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A server with weights of MobileNetV2 whose checksum stands in pytorchcv's table."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    torch.save(load_model(NETWORK, pretrained=False, seed=1).module.state_dict(), tmp_path / "w.pth")
    content = (tmp_path / "w.pth").read_bytes()
    sha1 = hashlib.sha1(content).hexdigest()
    monkeypatch.setitem(_model_sha1, NETWORK, ("0123", sha1, VERSION, *_model_sha1[NETWORK][3:]))
    (folder / f"{NETWORK}-0123-{sha1[:8]}.pth").write_bytes(content)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("GDFQ_EXPORT_WEIGHTS_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("GDFQ_EXPORT_CACHE", str(tmp_path / "cache"))
    yield tmp_path
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.slow
def test_the_two_commands_work_as_they_stand(
    mirror: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(mirror)
    assert main(["quantize", "--model", "mobilenetv2", "--bits", "8", "--out", "model.onnx"]) == 0
    capsys.readouterr()
    assert main(["verify", "model.onnx", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"]
    assert report["float_ops"] == []
    assert report["torch"]["mismatches"] == 0
