"""A file server with the faults of real ones, and a proxy that notes what passes through it."""

from __future__ import annotations

import contextlib
import re
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HTML = b"<!DOCTYPE html><html><body>Please log in</body></html>"


class FileServer:
    """A server of files by name; `odd` says what is wrong with one of them."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.odd: dict[str, str] = {}  # name -> no-ranges, lies, html, html-as-file, loop, wrong-range, changes, ...
        self.asked: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.cut_after: dict[str, int] = {}  # bytes of each answer after which the connection is closed
        self.seconds_per_block = 0.0
        self.lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(self))
        self.http.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}"


def handler_of(server: FileServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            pass

        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            with server.lock:
                server.asked[name] += 1
                count = server.asked[name]
            answer(self, server, name, count)

    return Handler


def answer(request: BaseHTTPRequestHandler, server: FileServer, name: str, count: int) -> None:
    odd = server.odd.get(name, "")
    if code := {"forbidden": 403, "gone": 404, "down": 503}.get(odd) or (503 if odd == "busy" and count < 3 else 0):
        return request.send_error(code)
    if odd in ("loop", "redirect"):
        return redirect(request, f"/{name}" if odd == "loop" else f"/elsewhere/{server.files[name].decode()}")
    if odd == "html":
        return send(request, server, name, 200, HTML, {"Content-Type": "text/html; charset=utf-8"})
    if odd == "challenge":
        return send(request, server, name, 202, b"", {})
    content = HTML if odd == "html-as-file" else server.files[name]
    tag = f'"{count if odd == "changes" else 1}"'
    asked = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
    if odd == "no-size":
        return send(request, server, name, 200, content, {"Content-Length": ""})
    if not asked or odd in ("no-ranges", "lies") or request.headers.get("If-Range", tag) != tag:
        announced = len(content) + (1000 if odd == "lies" else 0)
        return send(request, server, name, 200, content, {"Content-Length": str(announced), "ETag": tag})
    begin, end = int(asked[1]), min(int(asked[2]) + 1, len(content))
    total = len(content) + (100_000 if odd == "lies-in-ranges" else 0)
    shown = f"bytes {begin + (8 if odd == 'wrong-range' and begin else 0)}-{int(asked[2])}/{total}"
    more = b"?" * 1000 if odd == "too-much" else b""
    return send(request, server, name, 206, content[begin:end] + more, {"Content-Range": shown, "ETag": tag})


def redirect(request: BaseHTTPRequestHandler, to: str) -> None:
    request.send_response(302)
    request.send_header("Location", to)
    request.end_headers()


def send(
    request: BaseHTTPRequestHandler, server: FileServer, name: str, code: int, content: bytes, headers: dict[str, str]
) -> None:
    request.send_response(code)
    for key, value in (
        {"Content-Length": str(len(content)), "Content-Type": "application/octet-stream"} | headers
    ).items():
        request.send_header(key, value)
    request.end_headers()
    content = content[: server.cut_after.get(name, len(content))]
    with contextlib.suppress(ConnectionError):
        for begin in range(0, len(content), 16384):
            block = content[begin : begin + 16384]
            request.wfile.write(block)
            with server.lock:
                server.sent[name] += len(block)
            time.sleep(server.seconds_per_block)


@contextlib.contextmanager
def serving() -> Iterator[FileServer]:
    """Run a server until the context ends."""
    server = FileServer()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        thread.join()
        server.http.server_close()


@contextlib.contextmanager
def proxying() -> Iterator[tuple[str, list[str]]]:
    """Run a proxy; yield its address and the addresses that were asked for through it."""
    passed: list[str] = []

    class Proxy(BaseHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            pass

        def do_GET(self) -> None:
            passed.append(self.path)
            headers = {key: value for key, value in self.headers.items() if key in ("Range", "If-Range")}
            direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with direct.open(urllib.request.Request(self.path, headers=headers)) as found:
                self.send_response(found.status)
                for key in ("Content-Length", "Content-Range", "ETag", "Content-Type"):
                    if key in found.headers:
                        self.send_header(key, found.headers[key])
                self.end_headers()
                self.wfile.write(found.read())

    http = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}", passed
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
