"""An S3 server on loopback for the tests: moto's, in a process of its own, that writes down and breaks requests.

`ObjectStore` starts it and talks to it. What it served is in `requests()`; `fail(...)` breaks requests to come.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import Any

CONTROL = "/_control"


@dataclass
class Request:
    """One request as the server saw it."""

    method: str
    path: str
    """`/bucket/key`."""
    query: str
    range: str
    """The header, "" without one."""
    status: int = 0
    sent: int = 0
    """Bytes of the body."""
    start_s: float = 0.0
    end_s: float = 0.0


@dataclass
class Fault:
    """What becomes of requests: those of a method whose path ends with `path`, `times` of them after `skip`."""

    kind: str
    """"status": an S3 error; "cut": half of the body; "reset": closed at once; "slow": after `delay_s`."""
    path: str = ""
    method: str = "GET"
    times: int = 1
    skip: int = 0
    delay_s: float = 0.0
    status: int = 503
    code: str = "SlowDown"


class ObjectStore:
    """A running server. `options` completes a URI: `s3://bucket/key?{options}`."""

    def __init__(self) -> None:
        command = [sys.executable, "-W", "ignore", __file__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the server did not start"
        self.endpoint = f"127.0.0.1:{int(line)}"
        self.options = f"endpoint_override={self.endpoint}&scheme=http&region=us-east-1"

    def close(self) -> None:
        self._process.communicate()  # the end of its input ends it

    def uri(self, path: str) -> str:
        return f"s3://{path}?{self.options}"

    def put(self, path: str, body: bytes) -> None:
        """Store an object; its bucket is made."""
        self._control("put", path=path, count=0, body=body.hex())

    def put_many(self, pattern: str, count: int, body: bytes) -> None:
        """Store the same body as `pattern.format(i)` for i in [0, count)."""
        self._control("put", path=pattern, count=count, body=body.hex())

    def fail(self, kind: str, path: str = "", **fields: Any) -> None:
        self._control("fail", **asdict(Fault(kind, path, **fields)))

    def requests(self, path: str = "") -> list[Request]:
        """What was asked since `clear`, of paths that end with `path`."""
        return [one for one in (Request(**one) for one in self._control("requests")) if one.path.endswith(path)]

    def clear(self) -> None:
        """Forget requests and faults."""
        self._control("clear")

    def _control(self, action: str, **fields: Any) -> Any:
        address = f"http://{self.endpoint}{CONTROL}/{action}"
        with urllib.request.urlopen(address, json.dumps(fields).encode(), timeout=60) as answer:
            return json.load(answer)


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    store = ObjectStore()
    try:
        yield store
    finally:
        store.close()


def most_at_once(requests: Sequence[Request]) -> int:
    """The most requests that were under way at a time."""
    events = sorted([(one.start_s, 1) for one in requests] + [(one.end_s, -1) for one in requests])
    level = most = 0
    for _, step in events:
        level += step
        most = max(most, level)
    return most


class Recorder:
    """WSGI: hands requests on to moto's application, writes them down, and breaks those that faults name."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._requests: list[Request] = []
        self._faults: list[Fault] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path.startswith(CONTROL):
            answer = json.dumps(self._control(path.removeprefix(f"{CONTROL}/"), environ)).encode()
            start_response("200 OK", [("Content-Length", str(len(answer)))])
            return [answer]
        request = Request(
            environ["REQUEST_METHOD"],
            path,
            environ.get("QUERY_STRING", ""),
            environ.get("HTTP_RANGE", ""),
            start_s=time.perf_counter(),
        )
        with self._lock:
            self._requests.append(request)
            fault = self._fault(request)
        try:
            return self._answer(request, fault, environ, start_response)
        finally:
            request.end_s = time.perf_counter()

    def _answer(self, request: Request, fault: Fault | None, environ: Any, start_response: Any) -> Iterable[bytes]:
        if fault and fault.kind == "slow":
            time.sleep(fault.delay_s)
        if fault and fault.kind == "status":
            body = f"<Error><Code>{fault.code}</Code><Message>injected</Message></Error>".encode()
            request.status, request.sent = fault.status, len(body)
            headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
            start_response(f"{fault.status} {HTTPStatus(fault.status).phrase}", headers)
            return [] if request.method == "HEAD" else [body]
        if fault and fault.kind == "reset":
            environ["werkzeug.socket"].shutdown(2)
            raise ConnectionResetError
        answers: list[tuple[str, list[tuple[str, str]]]] = []
        body = b"".join(self._app(environ, lambda status, headers, *_: answers.append((status, headers))))
        (status, headers), *_ = answers
        if fault and fault.kind == "cut":
            headers = [(name, value) for name, value in headers if name.lower() != "content-length"]
            headers.append(("Content-Length", str(len(body))))
            body = body[: len(body) // 2]
        request.status, request.sent = int(status.split()[0]), len(body)
        start_response(status, headers)
        return [body]

    def _fault(self, request: Request) -> Fault | None:
        for fault in self._faults:
            if fault.times and request.method == fault.method and request.path.endswith(fault.path):
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                return fault
        return None

    def _control(self, action: str, environ: dict[str, Any]) -> Any:
        fields = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        with self._lock:
            if action == "requests":
                return [asdict(one) for one in self._requests]
            if action == "fail":
                self._faults.append(Fault(**fields))
            if action == "clear":
                self._requests.clear()
                self._faults.clear()
        if action == "put":
            pattern, count = fields["path"], fields["count"]
            for path in [pattern.format(i) for i in range(count)] if count else [pattern]:
                _store(path, bytes.fromhex(fields["body"]))
        return None


def _store(path: str, body: bytes) -> None:
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import get_canned_acl, s3_backends

    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    bucket, _, key = path.partition("/")
    if bucket not in backend.buckets:
        backend.create_bucket(bucket, "us-east-1")
    if key:
        backend.put_object(bucket, key, body).set_acl(get_canned_acl("public-read"))  # for plain HTTP


def serve() -> None:
    """Serve on a free port, which is printed, until the input ends."""
    from moto.server import create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *_: Any) -> None:
            pass

    server = make_server("127.0.0.1", 0, Recorder(create_backend_app("s3")), threaded=True, request_handler=Quiet)
    sys.stderr = io.StringIO()  # where werkzeug writes about connections that were reset
    print(server.server_port, flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    serve()
