"""The browser's runtime: what Node.js runs is what a page runs, and what is missing is said."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from browser import pages
from measured_network import images, quantized, small

from autocompress.errors import InputError
from autocompress.exporters.write import export
from autocompress.measure.memory import peak_memory_bytes
from autocompress.targets import get_target, onnx_web, registry
from autocompress.techniques.compressed import Precision

HERE = registry.load("onnxruntime-web").availability()
here = pytest.mark.skipif(not HERE.available, reason=f"onnxruntime-web: {HERE.reason}")


class Isolated(SimpleHTTPRequestHandler):
    """Serves a folder so that pages may have threads."""

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *args: object) -> None:
        """Nothing is printed."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Isolated, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


PAGE = """async ([threads, values, shape]) => {
  const ort = await import('/dist/ort.wasm.bundle.min.mjs');
  ort.env.wasm.numThreads = threads;
  ort.env.wasm.wasmPaths = '/dist/';
  const session = await ort.InferenceSession.create('/model.onnx', {executionProviders: ['wasm']});
  const x = new ort.Tensor('float32', Float32Array.from(values), shape);
  const found = await session.run({[session.inputNames[0]]: x});
  return [Array.from(found[session.outputNames[0]].data), crossOriginIsolated,
    ort.env.wasm.numThreads];
}"""


@here
def test_a_page_answers_what_node_answers(tmp_path: Path) -> None:
    """An integer file in headless Chromium, on one thread and on two."""
    compressed = quantized(small(), {"first": Precision(8, 8), "head": Precision(8, 8)})
    path = export(compressed, tmp_path / "model.onnx", images(2)).path
    (tmp_path / "page.html").write_text("<title>one file</title>", encoding="utf-8")
    (tmp_path / "dist").symlink_to(Path(HERE.details["package"]) / "dist")
    x = images(1).numpy()
    with closing(get_target("onnxruntime-web").open(path)) as session:
        (wanted,) = session.run([x])
    with served(tmp_path) as address, pages() as new_page:
        page = new_page()
        page.goto(f"{address}/page.html", wait_until="commit")
        for threads in (1, 2):
            found, isolated, used = page.evaluate(
                PAGE, [threads, x.ravel().tolist(), list(x.shape)]
            )
            assert isolated
            assert used == threads
            np.testing.assert_allclose(found, wanted.ravel(), rtol=1e-5)
            page.reload(wait_until="commit")


@here
def test_it_says_where_it_runs(tmp_path: Path) -> None:
    told = get_target("onnxruntime-web").describe()
    assert told["wasm"] == "SIMD, threads"
    assert told["node"] == HERE.details["node"]
    path = export(quantized(small(), {}), tmp_path / "m.onnx", images(2)).path
    assert peak_memory_bytes(get_target("onnxruntime-web"), path) is None


@here
def test_a_process_that_ends_is_told(tmp_path: Path) -> None:
    path = export(quantized(small(), {}), tmp_path / "m.onnx", images(2)).path
    with closing(get_target("onnxruntime-web").open(path)) as session:
        session._worker._process.kill()
        with pytest.raises(RuntimeError, match=r"Node\.js has ended"):
            session.run([images(1).numpy()])


@here
def test_an_operator_that_it_does_not_have_is_told(tmp_path: Path) -> None:
    import onnx

    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17, "mine": 1]> g (float[1] x) => (float[1] y) '
        "{ y = mine.Odd(x) }"
    )
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(InputError, match=r"onnxruntime-web cannot open odd\.onnx.*Odd"):
        get_target("onnxruntime-web").open(tmp_path / "odd.onnx")


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Node.js, or the package."""
    target = registry.load("onnxruntime-web")
    monkeypatch.setattr(onnx_web, "_found", onnx_web._found.__wrapped__)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = target.availability()
    assert not found.available
    assert "no `node` on the path" in found.reason
    assert "npm install onnxruntime-web" in found.reason


@pytest.mark.skipif(onnx_web.shutil.which("node") is None, reason="no Node.js here")
def test_without_the_package_the_command_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(onnx_web, "_found", onnx_web._found.__wrapped__)
    monkeypatch.delenv("NODE_PATH", raising=False)
    monkeypatch.chdir(tmp_path)
    found = registry.load("onnxruntime-web").availability()
    if found.available:
        assert json.dumps(found.as_dict())  # installed for everybody
    else:
        assert "Cannot find module 'onnxruntime-web'" in found.reason
        assert "npm install onnxruntime-web" in found.reason
