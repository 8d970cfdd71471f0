"""Which Prefect API is used, through what, and whether it is one: asked of Prefect's own settings and client."""

import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from prefect import __version__ as own

from flows.infra.prefect_api import asking, check, check_chosen, chosen_url, responds, settings
from flows.infra.prefect_refusals import proxy_of
from sublim.core.errors import UserError
from tasks.environment import LOOPBACK, read_dotenv, settle, spare_from_proxy

ROOT = Path(__file__).parents[2]
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


class Reply:
    """What a stand-in answers to everything but `/health`."""

    def __init__(self, status: int = 200, body: str = "", kind: str = "application/json", **headers: str) -> None:
        self.status, self.body, self.kind, self.headers = status, body, kind, headers


VERSION = Reply(body=f'"{own}"')


class Answering(BaseHTTPRequestHandler):
    """Answers every request alike, or as a function of its headers says."""

    def __init__(self, choose: Callable[[BaseHTTPRequestHandler], Reply], *arguments: object) -> None:
        self.choose = choose
        super().__init__(*arguments)  # pyright: ignore[reportArgumentType]

    def do_GET(self) -> None:
        reply = self.choose(self)
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", reply.kind)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body.encode())

    do_CONNECT = do_GET

    def log_message(self, format: str, *args: object) -> None: ...


class SixServer(ThreadingHTTPServer):
    """On ::1."""

    address_family = socket.AF_INET6


@contextmanager
def answering(
    choose: Callable[[BaseHTTPRequestHandler], Reply] | Reply,
    context: ssl.SSLContext | None = None,
    host: str = "127.0.0.1",
) -> Iterator[int]:
    """A port of this host that something answers on."""
    fixed = choose if callable(choose) else lambda request: choose
    kind = SixServer if ":" in host else ThreadingHTTPServer
    with kind((host, 0), partial(Answering, fixed)) as server:
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user without proxies, profiles or files in the working folder."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in [name for name in os.environ if name.startswith("PREFECT_API_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Certificate and key of a lab's own authority, for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("certificate")
    out = ("-keyout", str(folder / "key.pem"), "-out", str(folder / "lab.pem"))
    subject = ("-subj", "/CN=lab", "-addext", "subjectAltName=IP:127.0.0.1")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject, *out]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("this machine has no openssl to make a certificate with")
    return folder / "lab.pem", folder / "key.pem"


def refusal(url: str, seconds: float = 5.0) -> str:
    with pytest.raises(UserError) as caught:
        check(url, seconds)
    said = str(caught.value)
    assert "\n" not in said
    return said


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (Reply(body="<html>lab wiki</html>", kind="text/html"), "not Prefect's API (it sent text/html)"),
        (Reply(body='{"status": "ok"}'), "not Prefect's API"),
        (Reply(body='"healthy"'), "not Prefect's API"),
        (Reply(body=""), "not Prefect's API"),
        (Reply(body='"2.20.4"'), "is Prefect 2.20.4 and this is Prefect 3."),
        (Reply(body='"4.0.0rc1"'), "is Prefect 4.0.0rc1 and this is Prefect 3."),
        (Reply(401), "wants a password: set PREFECT_API_AUTH_STRING"),
        (Reply(403), "forbids access"),
        (Reply(404), "usually ends in /api"),
        (Reply(502), "it answers 502"),
        (Reply(400, body="The plain HTTP request was sent to HTTPS port"), "write https://"),
    ],
)
def test_an_answer_that_is_not_a_usable_prefect_is_explained(reply: Reply, says: str) -> None:
    with answering(reply) as port:
        assert says in refusal(f"http://127.0.0.1:{port}/api")


def test_a_login_page_behind_a_redirect_is_not_taken_for_the_api() -> None:
    def choose(request: BaseHTTPRequestHandler) -> Reply:
        return (
            Reply(body="<html>log in</html>", kind="text/html")
            if "login" in request.path
            else Reply(302, Location="/login")
        )

    with answering(choose) as port:
        assert "it sent text/html" in refusal(f"http://127.0.0.1:{port}/api")
        assert not responds(f"http://127.0.0.1:{port}/api")


@pytest.mark.parametrize("version", [own, "3.0.0", "3.99.1.dev4+g12"])
@pytest.mark.parametrize("end", ["/api", "/api/"])
def test_a_server_of_the_same_first_number_is_used(version: str, end: str) -> None:
    with answering(Reply(body=f'"{version}"')) as port:
        assert check(f"http://127.0.0.1:{port}{end}") == version


def test_what_a_gateway_wants_is_sent_as_prefect_sends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(request: BaseHTTPRequestHandler) -> Reply:
        return VERSION if request.headers["X-Lab"] == "owl" else Reply(401)

    with answering(choose) as port:
        url = f"http://127.0.0.1:{port}/api"
        monkeypatch.setenv("PREFECT_API_KEY", "pl4nt3d")
        said = refusal(url)
        assert "refuses the key in PREFECT_API_KEY" in said
        assert "pl4nt3d" not in said
        monkeypatch.setenv("PREFECT_CLIENT_CUSTOM_HEADERS", '{"X-Lab": "owl"}')
        assert check(url) == own


def test_what_is_at_the_port_but_speaks_no_http_or_not_in_time_is_explained() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
        assert "does not answer in time" in refusal(url, 0.3)

        def hang_up() -> None:
            for _ in range(2):
                connection, _ = listening.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"\x15\x03\x01\x00\x02\x02\x46")  # how TLS refuses

        threading.Thread(target=hang_up, daemon=True).start()
        assert "write https://" in refusal(url)
    assert "nothing listens there" in refusal(url)
    assert "lab.invalid is not known" in refusal("http://lab.invalid:4200/api")


def test_own_certificate_is_trusted_where_prefect_is_told_to(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with answering(VERSION, context) as port, answering(VERSION) as open_port:
        url = f"https://127.0.0.1:{port}/api"
        assert "set PREFECT_API_SSL_CERT_FILE" in refusal(url)
        assert "write http://" in refusal(f"https://127.0.0.1:{open_port}/api")
        monkeypatch.setenv("PREFECT_API_SSL_CERT_FILE", str(tmp_path / "none.pem"))
        assert "none.pem" in refusal(url)
        monkeypatch.setenv("PREFECT_API_SSL_CERT_FILE", str(certificate[1]))
        assert "holds no readable certificate" in refusal(url)
        monkeypatch.setenv("PREFECT_API_SSL_CERT_FILE", str(certificate[0]))
        assert check(url) == own
        monkeypatch.delenv("PREFECT_API_SSL_CERT_FILE")
        monkeypatch.setenv("PREFECT_API_TLS_INSECURE_SKIP_VERIFY", "true")
        assert check(url) == own


def test_loopback_is_never_asked_through_a_proxy_and_the_proxy_is_named_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with answering(Reply(403)) as proxy, answering(VERSION) as port, answering(VERSION, host="::1") as six:
        for name in ("HTTP_PROXY", "https_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://me:pl4nt3d@127.0.0.1:{proxy}")
        monkeypatch.setenv("NO_PROXY", "")
        monkeypatch.setenv("no_proxy", "")
        for url in (f"http://127.0.0.1:{port}/api", f"http://localhost:{port}/api", f"http://[::1]:{six}/api"):
            assert check(url) == own
        assert refusal("http://127.0.0.2:9/api").endswith("start it")
        assert proxy_of("http://127.0.0.2:9/api") is None
        for url in ("http://lab.invalid:4200/api", "https://lab.invalid/api"):
            said = refusal(url)
            assert f"through the proxy 127.0.0.1:{proxy}: if it needs none, add lab.invalid to NO_PROXY" in said
            assert "pl4nt3d" not in said


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1080", "socks4://127.0.0.1:1080"])
def test_a_proxy_that_no_client_can_use_is_named(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    assert "ALL_PROXY" in refusal("http://127.0.0.1:9/api")


@pytest.mark.parametrize(
    ("set_before", "spared"),
    [
        ({}, None),
        ({"NO_PROXY": "lab.org"}, "lab.org"),
        ({"HTTP_PROXY": "http://p"}, "localhost,127.0.0.1,::1"),
        ({"https_proxy": "p:1", "NO_PROXY": "lab.org, 127.0.0.1"}, "lab.org,127.0.0.1,localhost,::1"),
        ({"ALL_PROXY": "socks5://p", "no_proxy": "*"}, "*"),
        ({"HTTP_PROXY": "http://p", "no_proxy": ".lab.org", "NO_PROXY": "other"}, ".lab.org,localhost,127.0.0.1,::1"),
    ],
)
def test_the_users_own_exceptions_from_the_proxy_stay(
    set_before: dict[str, str], spared: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in set_before.items():
        monkeypatch.setenv(name, value)
    spare_from_proxy(*LOOPBACK)
    assert os.environ.get("no_proxy", os.environ.get("NO_PROXY")) == spared
    spare_from_proxy(*LOOPBACK)
    assert os.environ.get("NO_PROXY") == (spared and os.environ.get("no_proxy", spared))


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("127.0.0.1:4200/api", "write the whole address"),
        ("lab:4200", "write the whole address"),
        ("http:///api", "write the whole address"),
        ("http://127.0.0.1:99999/api", "write the whole address"),
        ("http://127.0.0.1:port/api", "write the whole address"),
        ("http://127.0.0.1:4200/api\n", "write the whole address"),
        (" http://127.0.0.1:4200/api", "write the whole address"),
        ("http://a..b:4200/api", "write the whole address"),
        ("http://[::1/api", "Invalid IPv6 URL"),
        ("http://me:pl4nt3d@lab/api", "PREFECT_API_AUTH_STRING"),
    ],
)
def test_an_address_that_cannot_be_one_is_refused(url: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", url)
    with pytest.raises(UserError, match=says) as caught:
        chosen_url()
    assert "pl4nt3d" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://prefect_server:4200/api", "http://[::1]:4200/api", "HTTPS://löwe.org./api"])
def test_an_unusual_address_that_can_be_one_is_taken(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", url)
    assert chosen_url() == url


@pytest.mark.parametrize("with_proxy", [False, True])
@pytest.mark.parametrize(
    ("exceptions", "spared"),
    [
        ("[::1],lab.org", "::1,lab.org"),
        ("fe80::/10", "fe80::"),
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("lab.org:8080", "lab.org:8080"),
    ],
)
def test_exceptions_from_the_proxy_that_httpx_cannot_read_bar_nobody(
    exceptions: str, spared: str, with_proxy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", exceptions)
    with answering(VERSION) as port, answering(Reply(403)) as proxy:
        if with_proxy:
            monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy}")
        settle()
        assert os.environ["NO_PROXY"].startswith(spared)
        assert check(f"http://127.0.0.1:{port}/api") == own


def test_a_host_in_a_range_of_exceptions_is_asked_through_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "lab.org,10.0.0.0/8")
    assert proxy_of("http://10.1.2.3:4200/api") is not None
    with asking("http://10.1.2.3:4200/api", 1.0):
        assert proxy_of("http://10.1.2.3:4200/api") is None
    assert proxy_of("http://11.1.2.3:4200/api") is not None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PREFECT_API_KEY", "pl4nt3d\n"),
        ("PREFECT_API_KEY", "pl4nt3d-ü"),
        ("PREFECT_CLIENT_CUSTOM_HEADERS", '{"X-Lab": "pl4nt3d\\n"}'),
    ],
)
def test_a_key_that_no_header_can_carry_is_named_and_not_shown(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with answering(VERSION) as port:
        said = refusal(f"http://127.0.0.1:{port}/api")
    assert name in said
    assert "pl4nt3d" not in said


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", "~nobody-of-this-name/prefect")
    with pytest.raises(UserError, match="set PREFECT_HOME"):
        settings()


def test_the_address_comes_from_wherever_prefect_takes_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = tmp_path / "prefect home"
    home.mkdir()
    assert chosen_url() is None
    (home / "profiles.toml").write_text('active = "lab"\n[profiles.lab]\nPREFECT_API_URL = "http://127.0.0.1:1/api"\n')
    assert chosen_url() == "http://127.0.0.1:1/api"
    (tmp_path / "pyproject.toml").write_text('[tool.prefect.api]\nurl = "http://127.0.0.1:2/api"\n')
    assert chosen_url() == "http://127.0.0.1:2/api"
    (tmp_path / "prefect.toml").write_text('[api]\nurl = "http://127.0.0.1:3/api"\n')
    assert chosen_url() == "http://127.0.0.1:3/api"
    (tmp_path / ".env").write_text("PREFECT_API_URL=http://127.0.0.1:4/api\n")
    assert chosen_url() == "http://127.0.0.1:4/api"
    with pytest.raises(UserError, match=r"prefect\.toml"):
        check_chosen("http://127.0.0.1:3/api")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:5/api")
    assert chosen_url() == "http://127.0.0.1:5/api"
    with pytest.raises(UserError, match="comes from the environment"):
        check_chosen("http://127.0.0.1:5/api")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("PREFECT_LOGGING_LEVEL", "verbose", "level"),
        ("PREFECT_API_REQUEST_TIMEOUT", "pl4nt3d", "request_timeout"),
        ("PREFECT_CLIENT_CUSTOM_HEADERS", "X-Lab: pl4nt3d", "custom_headers"),
    ],
)
def test_a_setting_that_prefect_refuses_is_one_line(
    name: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=says) as caught:
        settings()
    assert "\n" not in str(caught.value)
    assert "pl4nt3d" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("prefect.toml", b"[api\nurl = "),
        ("prefect.toml", b'[api]\nurl = "\xe9"'),
        ("prefect home/profiles.toml", b'active = "lab"\n[profiles]\nlab = "http://lab/api"\n'),
    ],
)
def test_a_settings_file_that_prefect_cannot_read_is_one_line(file: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match="Prefect's settings cannot be read") as caught:
        settings()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"A=1\r\nB = 2\r\n", {"A": "1", "B": "2"}),
        (b"\xef\xbb\xbfA=1\n", {"A": "1"}),
        (b"export A='x y' # why\nB=\"two words\"\n", {"A": "x y", "B": "two words"}),
        (b"# A=1\n\nB=\nC\nD=4", {"D": "4"}),
        ("A=größe\nB=${A}/x\n".encode(), {"A": "größe", "B": "größe/x"}),
        (b"", {}),
    ],
)
def test_dotenv_is_read_as_people_write_it(content: bytes, found: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(content)
    assert read_dotenv(tmp_path / ".env") == found


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"A=1\nset -a\n", "line 2 of"),
        (b'A="no end\nB=2\n', "line 1 of"),
        (b"A=gr\xf6\xdfe\n", "not UTF-8"),
        ("A=1\n".encode("utf-16"), "not UTF-8"),
        ("A=1\n".encode("utf-16-le"), "line 1 of"),
    ],
)
def test_dotenv_that_would_be_read_wrongly_is_refused(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(content)
    with pytest.raises(UserError, match=says):
        read_dotenv(tmp_path / ".env")


def test_dotenv_that_is_a_folder_is_none(tmp_path: Path) -> None:
    (tmp_path / ".env").mkdir()  # a virtual environment
    assert read_dotenv(tmp_path / ".env") == {}
    assert read_dotenv(tmp_path / "none") == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_dotenv_of_another_user_is_one_line_and_a_folder_of_theirs_has_none() -> None:
    with TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = Path(name)
        (folder / ".env").write_text("A=1\n", encoding="utf-8")
        (folder / ".env").chmod(0o600)
        os.seteuid(54321)
        try:
            assert read_dotenv(folder / ".env") == {}
            os.seteuid(0)
            folder.chmod(0o755)
            os.seteuid(54321)
            with pytest.raises(UserError, match="Permission denied"):
                read_dotenv(folder / ".env")
        finally:
            os.seteuid(0)


def process(folder: Path, *command: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    own = {"PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, *command], cwd=folder, env=os.environ | own, capture_output=True, text=True)


def test_dotenv_is_in_force_in_the_command_a_flow_and_a_stages_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SUBLIM_STORE", raising=False)
    (tmp_path / ".env").write_text(
        f"SUBLIM_STORE={tmp_path}/of the lab\nPREFECT_API_URL=http://127.0.0.1:9/api\nHF_TOKEN=t\n"
    )
    done = process(tmp_path, "-m", "flows", "store", "create")
    assert str(tmp_path / "of the lab") in done.stdout
    done = process(tmp_path, "-m", "flows.mnist")
    assert (done.returncode, "PREFECT_API_URL, which comes from .env" in done.stderr) == (2, True)
    show = "import os, tasks.child; print(os.environ['SUBLIM_STORE'], os.environ['HF_TOKEN'])"
    assert process(tmp_path, "-c", show, SUBLIM_STORE="mine").stdout == "mine t\n"
    (tmp_path / ".env").write_text("SUBLIM_STORE 3\n")
    done = process(tmp_path, "-m", "flows", "store", "ls")
    assert done.returncode == 2
    assert done.stderr.startswith("sublim: line 1 of ")


def test_a_profile_file_cut_short_is_one_line_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "profiles.toml").write_text('active = "lab"\n\n[profiles.lab\nPREFECT_API_URL = "http')
    done = process(tmp_path, "-m", "flows", "server", "status", PREFECT_HOME=str(tmp_path))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "profiles.toml") in done.stderr.splitlines()[-1]
