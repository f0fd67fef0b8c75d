"""The explorer in Debian's chromium, driven by Playwright: `make test-browser`."""

import json
import shutil
import socket
import threading
import time
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import expect, sync_playwright

from bandpo.explore.data import exported_page
from bandpo.explore.server import make_app
from folders import make_batch, make_run
from helpers import ROOT

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>&amp;"
STUDY = ROOT / "results" / "tail" / "metrics.json"


@pytest.fixture(scope="session")
def browser():
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.exit("chromium is not installed; on Debian and Ubuntu: apt-get install chromium", returncode=1)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Opens an address in a window of its own; the test fails if the page has an error or asks for another address.

    `page.asked` lists the addresses of all requests.
    """
    windows = []

    def open_page(address, width=1440, scheme="light", offline=False):
        window = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=offline)
        page = window.new_page()
        page.asked, page.wrong = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("pageerror", lambda error: page.wrong.append(f"error: {error}"))
        page.on("console", lambda message: page.wrong.append(message.text) if message.type == "error" else None)
        page.on("dialog", lambda dialog: (page.wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.goto(str(address))
        expect(page.locator("#plots svg")).to_have_count(4)
        windows.append((window, page))
        return page

    yield open_page
    for window, page in windows:
        window.close()
        assert page.wrong == []


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A directory of runs: two seeds of Band, one of a clip, and one whose name and tokens are HTML."""
    root = tmp_path_factory.mktemp("browser") / "runs"
    alarms = [(9, "entropy_low", "fired"), (17, "entropy_low", "cleared")]
    make_run(root / "band-0", 40, 0, batches=(8, 24, 40), alarms=alarms)
    make_run(root / "band-1", 40, 1)
    make_run(root / "clip-0", 40, 0, "clip")
    hostile = make_run(root / HOSTILE.replace("/", "\u2215"), 12, 0, "dcpo")
    make_batch(8, [HOSTILE, "\u202e<b>", "a\n b"]).save(hostile / "batches")
    (hostile / "alarms.jsonl").write_text(json.dumps({"step": 3, "alarm": HOSTILE, "event": "fired"}) + "\n")
    return root


@pytest.fixture(scope="session")
def exported(runs, tmp_path_factory):
    """Address of a file with the runs and a study."""
    path = tmp_path_factory.mktemp("exported") / "page.html"
    path.write_text(exported_page([runs, STUDY]), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """Address of a file with no run."""
    path = tmp_path_factory.mktemp("plain") / "page.html"
    path.write_text(exported_page([]), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def served():
    """Serves paths until the test ends: paths in, address out."""
    running = []

    def start(*paths: Path):
        listening = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(make_app(paths), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        until = time.monotonic() + 60
        while not server.started and time.monotonic() < until:
            time.sleep(0.01)
        running.append((server, thread, listening))
        return f"http://127.0.0.1:{listening.getsockname()[1]}/"

    yield start
    for server, thread, listening in running:
        server.should_exit = server.force_exit = True
        thread.join(60)
        listening.close()
