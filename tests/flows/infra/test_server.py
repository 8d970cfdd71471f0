"""Which Prefect server a run uses."""

import os
import subprocess
import sys
import threading
from base64 import b64encode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import prefect
import pytest

from flows.__main__ import main
from flows.infra.prefect_api import check

LATE = """
import os, sys
import prefect.context
from flows.infra import server
os.environ["PREFECT_API_URL"] = sys.argv[1]
server.ensure()
print(prefect.context.get_settings_context().settings.api.url)
"""


def test_prefect_that_a_check_imported_uses_the_server_found_afterwards(prefect_server: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    done = subprocess.run(
        [sys.executable, "-c", LATE, prefect_server], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == prefect_server


@pytest.mark.parametrize("known", ["", "lab:pl4nt3d"])
def test_a_server_that_refuses_the_password_is_told_from_one_that_is_away(
    known: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Asking(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            right = self.headers["Authorization"] == f"Basic {b64encode(b'lab:right').decode()}"
            self.send_response(200 if right or self.path == "/api/health" else 401)
            self.end_headers()
            self.wfile.write(f'"{prefect.__version__}"'.encode())

        def log_message(self, format: str, *args: object) -> None: ...

    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), Asking) as asking:
        threading.Thread(target=asking.serve_forever, daemon=True).start()
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{asking.server_port}/api")
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", known)
        assert main(["pools"]) == 2
        told = capsys.readouterr().err
        assert "refuses" in told if known else "wants a password" in told
        assert "PREFECT_API_AUTH_STRING" in told
        assert "pl4nt3d" not in told
        monkeypatch.delenv("PREFECT_API_AUTH_STRING")
        (tmp_path / "profiles.toml").write_text(
            'active = "lab"\n[profiles.lab]\nPREFECT_API_AUTH_STRING = "lab:right"\n'
        )
        assert check(os.environ["PREFECT_API_URL"]) == prefect.__version__
        asking.shutdown()
