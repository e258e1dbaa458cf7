"""The liveness probe: GET /healthz answers 200 while the loops come round, 503 with the reason if not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from lbless_edge.process import Fatal


def serve(port: int, sick: Callable[[], str]) -> None:
    """Serve in a thread of its own; `sick` returns why the process should be restarted, or "".

    On all addresses, as the kubelet asks at the pod's. Raises Fatal where the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            reason = sick()
            body = f"{reason or 'ok'}\n".encode()
            self.send_response(503 if reason else 200)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Probes come every few seconds: no line each."""

    try:
        server = ThreadingHTTPServer(("", port), Handler)
    except OSError as error:
        raise Fatal(
            f"The liveness probe cannot be served on port {port} ({error.strerror}): choose another --liveness-port."
        ) from None
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="liveness", daemon=True).start()
