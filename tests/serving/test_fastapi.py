"""The server that the guide shows, asked over the wire by several clients at once."""

from __future__ import annotations

import http.client
import json
import threading
import time
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest
from documented import DOCS, blocks

import cmt

CLIENTS, REQUESTS = 4, 10


@pytest.fixture
def port(stored: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Where the example listens, which is served by a thread of this process."""
    pytest.importorskip("fastapi", reason="needs fastapi and uvicorn, of the dev extra")
    uvicorn = pytest.importorskip("uvicorn", reason="needs uvicorn, of the dev extra")
    monkeypatch.setenv("BUNDLE", str(stored))
    module = types.ModuleType("serve")
    ((_, code),) = [b for b in blocks([DOCS / "guide" / "serving.md"]) if "serve.py" in b[0]]
    exec(compile(code, "serve.py", "exec"), module.__dict__)
    server = uvicorn.Server(uvicorn.Config(module.app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


def ask(port: int, body: bytes, path: str = "/classify") -> tuple[int, object]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", path, body, {"Content-Type": "image/jpeg"})
    answer = connection.getresponse()
    content = answer.status, json.loads(answer.read())
    connection.close()
    return content


def test_many_clients_get_the_bundles_own_answers(stored: Path, port: int) -> None:
    photo = (stored / "golden" / "photo.jpg").read_bytes()
    with cmt.Classifier(stored, threads=1) as classifier:
        expected = [asdict(one) for one in classifier.classify(photo)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(lambda _: ask(port, photo), range(CLIENTS * REQUESTS)))
    assert answers == [(200, expected)] * (CLIENTS * REQUESTS)


def test_what_is_no_photo_is_refused_in_a_line(port: int) -> None:
    assert ask(port, b"no picture") == (
        422,
        {"detail": "an image: it is no JPEG or PNG file: convert it"},
    )
    status, told = ask(port, b"no picture", "/classify?top=0")
    assert (status, told) == (422, {"detail": "top must be at least 1, not 0"})
