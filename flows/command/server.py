"""`sublim server start | stop | status`: the local Prefect server."""

from cyclopts import App

from flows.infra import server
from flows.infra.prefect_api import chosen_url
from flows.infra.prefect_refusals import origin

app = App(name="server")


@app.command
def start() -> int:
    """Start the server, if it is not running."""
    found = server.start()
    print(f"the server runs at {found.url} (process {found.pid}); its log is {server.folder() / 'server.log'}")
    if (chosen := chosen_url()) and chosen.rstrip("/") != found.api:
        print(f"runs use {chosen}, from {origin()}")
    return 0


@app.command
def stop() -> int:
    """Stop the server."""
    found = server.stop()
    print(f"the server at {found.url} was stopped" if found else f"no local server was running{_other_host()}")
    return 0


@app.command
def status() -> int:
    """Show whether the server is running, and which server `sublim run` uses."""
    found = server.running()
    print(
        f"the server runs at {found.url} (process {found.pid})"
        if found
        else f"no local server is running{_other_host()}"
    )
    if chosen := chosen_url():
        print(f"runs use {chosen}, from {origin()}")
    return 0


def _other_host() -> str:
    if other := server.elsewhere():
        return f" on this host; that of {other.host} (process {other.pid}) can only be used and stopped there"
    return ""
