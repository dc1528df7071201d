"""The download of published weights, from a server on this machine."""

from __future__ import annotations

import hashlib
import http.server
import io
import socket
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gdfq_export.errors import WeightsError
from gdfq_export.models import download
from gdfq_export.models.download import Published, download_weights, published_weights
from gdfq_export.models.sources import load_model
from gdfq_export.models.table import find_model

CONTENT = b"the weights" * 1000
PUBLISHED = Published("net-0887-0123abcd.pth", "v0.0.1", hashlib.sha1(CONTENT).hexdigest())
ENTRY = find_model("mobilenetv2")


class Server:
    """Serves `files` by path; counts the requests."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.promised: int | None = None  # a Content-Length that is more than what comes
        self.requests: list[str] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append(self.path)
                content = outer.files.get(self.path)
                self.send_response(200 if content is not None else 404)
                self.send_header("Content-Length", str(outer.promised or len(content or b"")))
                self.end_headers()
                self.wfile.write(content or b"")

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/mirror"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


def zipped(content: bytes, name: str = PUBLISHED.file) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    server = Server()
    monkeypatch.setenv("GDFQ_EXPORT_WEIGHTS_URL", server.url)
    monkeypatch.setenv("GDFQ_EXPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "published_weights", lambda architecture: PUBLISHED)
    yield server
    server.http.shutdown()
    server.http.server_close()


def cached(tmp_path: Path) -> list[str]:
    return sorted(entry.name for entry in (tmp_path / "cache").iterdir())


@pytest.mark.parametrize("where", ["v0.0.1/net-0887-0123abcd.pth.zip", "net-0887-0123abcd.pth.zip"])
def test_a_zipped_file_is_fetched_unpacked_and_kept(server: Server, tmp_path: Path, where: str) -> None:
    server.files[f"/mirror/{where}"] = zipped(CONTENT)
    path = download_weights(ENTRY)
    assert path.read_bytes() == CONTENT
    assert cached(tmp_path) == [PUBLISHED.file]


def test_a_mirror_may_serve_the_file_plain(server: Server) -> None:
    server.files[f"/mirror/{PUBLISHED.file}"] = CONTENT
    assert download_weights(ENTRY).read_bytes() == CONTENT


def test_the_second_time_nothing_is_asked(server: Server) -> None:
    server.files[f"/mirror/{PUBLISHED.file}"] = CONTENT
    download_weights(ENTRY)
    asked = len(server.requests)
    download_weights(ENTRY)
    assert len(server.requests) == asked


def test_a_damaged_file_in_the_cache_is_replaced(server: Server, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / PUBLISHED.file).write_bytes(CONTENT[:-1])
    server.files[f"/mirror/{PUBLISHED.file}"] = CONTENT
    assert download_weights(ENTRY).read_bytes() == CONTENT


def test_a_wrong_checksum_is_one_sentence_and_leaves_no_file(server: Server, tmp_path: Path) -> None:
    server.files[f"/mirror/{PUBLISHED.file}"] = CONTENT + b"!"
    with pytest.raises(WeightsError, match=r"weights of mobilenetv2 .* do not match their checksum and were removed"):
        download_weights(ENTRY)
    assert cached(tmp_path) == []


@pytest.mark.parametrize("content", [b"<html>sign in</html>", zipped(CONTENT, "other.pth"), zipped(CONTENT)[:-40]])
def test_what_is_no_zip_with_the_file_is_one_sentence(server: Server, tmp_path: Path, content: bytes) -> None:
    server.files[f"/mirror/v0.0.1/{PUBLISHED.file}.zip"] = content
    with pytest.raises(WeightsError, match=r"the download for mobilenetv2 is no zip with net-0887-0123abcd\.pth in it"):
        download_weights(ENTRY)
    assert cached(tmp_path) == []


def test_a_connection_that_ends_early_is_one_sentence(server: Server, tmp_path: Path) -> None:
    server.files[f"/mirror/v0.0.1/{PUBLISHED.file}.zip"] = zipped(CONTENT)
    server.promised = 1 << 20
    with pytest.raises(WeightsError, match=r"cannot download the weights of mobilenetv2 .*--weights FILE$"):
        download_weights(ENTRY)
    assert cached(tmp_path) == []


def test_a_file_that_the_mirror_lacks_is_one_sentence(server: Server) -> None:
    with pytest.raises(
        WeightsError, match=r"cannot download the weights of mobilenetv2 from http://127.* \(Not Found\)"
    ):
        download_weights(ENTRY)


def test_without_network_one_sentence_names_the_model_and_the_option(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("GDFQ_EXPORT_WEIGHTS_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(
            WeightsError, match=r"weights of mobilenetv2 .*, or pass them with --weights FILE$"
        ) as caught:
            download_weights(ENTRY)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("url", ["nonsense", "http://[", "gopher://127.0.0.1/"])
def test_a_mirror_that_is_no_address_is_one_sentence(server: Server, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("GDFQ_EXPORT_WEIGHTS_URL", url)
    with pytest.raises(WeightsError, match="cannot download the weights of mobilenetv2"):
        download_weights(ENTRY)


def test_a_cache_that_cannot_be_written_names_the_variable(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GDFQ_EXPORT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(WeightsError, match="set GDFQ_EXPORT_CACHE to another folder"):
        download_weights(ENTRY)


def test_a_network_that_nobody_trained_names_the_two_ways_out() -> None:
    with pytest.raises(WeightsError, match=r"no trained weights for resnet200: .*--weights FILE, .*--no-pretrained"):
        download_weights(find_model("resnet200"))


def test_without_a_mirror_the_address_is_that_of_the_publisher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GDFQ_EXPORT_WEIGHTS_URL", raising=False)
    (address,) = download._addresses(PUBLISHED)
    assert address.endswith("/osmr/imgclsmob/releases/download/v0.0.1/net-0887-0123abcd.pth.zip")


def test_a_named_network_is_loaded_from_the_download(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The whole way, with a file that pytorchcv's own table of checksums knows."""
    from pytorchcv.models.model_store import _model_sha1

    monkeypatch.setattr(download, "published_weights", published_weights)
    state = load_model("fdmobilenet_wd4", pretrained=False, seed=3).module.state_dict()
    torch.save(state, tmp_path / "w.pth")
    content = (tmp_path / "w.pth").read_bytes()
    sha1 = hashlib.sha1(content).hexdigest()
    monkeypatch.setitem(_model_sha1, "fdmobilenet_wd4", ("0123", sha1, "v9", *_model_sha1["fdmobilenet_wd4"][3:]))
    name = f"fdmobilenet_wd4-0123-{sha1[:8]}.pth"
    server.files[f"/mirror/v9/{name}.zip"] = zipped(content, name)
    loaded = load_model("fdmobilenet_wd4")
    assert isinstance(loaded.module, torch.nn.Module)
    assert torch.equal(loaded.module.state_dict()["output.weight"], state["output.weight"])
    assert loaded.weights_source == "pytorchcv"
    assert loaded.weights_sha256 == hashlib.sha256(content).hexdigest()
