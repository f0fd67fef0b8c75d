"""The server: it sends what was opened, to this machine alone, and reads nothing else."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from urllib.parse import quote

import pytest
import uvicorn

from bandpo.explore import server as module
from bandpo.explore.server import HEADERS, make_app, serve
from bandpo.explore.sources import find_sources
from folders import make_run, metric_line

SECRET = "the secret outside"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """runs/{a,b} to open, and beside it a file and a run that are not opened but linked to."""
    root = tmp_path_factory.mktemp("served")
    make_run(root / "runs" / "a", 6, batches=(4,), status="running")
    make_run(root / "runs" / "b", 6)
    make_run(root / "private", 6)
    (root / "secret.jsonl").write_text(json.dumps({"step": 1, "entropy": 1.0, "note": SECRET}) + "\n")
    (root / "runs" / "linked").symlink_to(root / "private")
    make_run(root / "runs" / "c", 6)
    (root / "runs" / "c" / "metrics.jsonl").unlink()
    (root / "runs" / "c" / "metrics.jsonl").symlink_to(root / "secret.jsonl")
    make_run(root / "runs" / "d", 6)
    (root / "runs" / "d" / "batches").symlink_to(root / "runs" / "a" / "batches")  # within what was opened
    make_run(root / "runs" / "e", 6, batches=(4,))
    (root / "runs" / "e" / "batches" / "batch-9.npz").symlink_to(root / "secret.jsonl")
    return root


@pytest.fixture(scope="module")
def port(folder):
    listening = uvicorn.Server(uvicorn.Config(make_app([folder / "runs"]), port=0, log_level="error"))
    thread = threading.Thread(target=listening.run, daemon=True)
    thread.start()
    until = time.monotonic() + 60
    while not listening.started and time.monotonic() < until:
        time.sleep(0.01)
    yield listening.servers[0].sockets[0].getsockname()[1]
    listening.should_exit = True
    thread.join(60)


def ask(port, path, method="GET", **headers):
    """(status, headers, text); the path is sent as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read().decode()


def page_data(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_the_page_lists_what_was_opened_and_its_data_come_by_id(port):
    status, headers, text = ask(port, "/")
    assert status == 200
    assert {name.lower(): value for name, value in HEADERS.items()}.items() <= headers.items()
    sources = page_data(text)["sources"]
    assert [(one["kind"], one["name"]) for one in sources] == [
        ("run", "runs/a"), ("tokens", "runs/a"), ("run", "runs/b"), ("run", "runs/d"),
        ("tokens", "runs/d"), ("run", "runs/e"), ("tokens", "runs/e"),
    ]  # fmt: skip
    assert "connect-src 'self'" in text
    for one in sources:
        status, _, text = ask(port, f"/{one['url']}")
        assert status == 200
        data = json.loads(text)
        assert data["tokens"] if one["kind"] == "tokens" else data["runs"][0]["name"] == one["name"]


def test_a_live_run_is_sent_in_parts(port, folder):
    _, _, text = ask(port, "/data/run%3Aruns%2Fa")
    first = json.loads(text)
    with (folder / "runs" / "a" / "metrics.jsonl").open("a") as stream:
        stream.write(metric_line(7))
    _, _, text = ask(port, f"/data/run%3Aruns%2Fa?since={first['version']}")
    assert json.loads(text)["runs"][0]["steps"]["updates"] == [7]


TRAVERSALS = [
    "/../secret.jsonl",
    "/data/../../secret.jsonl",
    "/data/..%2f..%2fsecret.jsonl",
    "/data/%2e%2e/%2e%2e/secret.jsonl",
    "/data//etc/passwd",
    "/data/%2Fetc%2Fpasswd",
    "/data/run:runs/a/../../private",
    "/data/run%3Aruns%2Fa%2F..%2F..%2Fprivate",
    "/data/run%3Aprivate",
    "/data/run%3Aruns%2Flinked",
    "/data/run%3Aruns%2Fc",
    "/data/run%3Aruns%2Fa%00",
    "/data/" + "a" * 5000,
    "/data/",
    "/static/page.js",
    "/runs/a/metrics.jsonl",
]


@pytest.mark.parametrize("path", TRAVERSALS)
def test_a_path_that_was_not_opened_is_not_found(port, path):
    status, _, text = ask(port, path)
    assert status == 404
    assert SECRET not in text
    assert "private" not in text


def test_symlinks_out_of_the_directory_are_not_read(port, folder):
    _, _, text = ask(port, "/")
    assert "runs/c/metrics.jsonl&#39; points outside of" in text
    assert "batch-9.npz&#39; points outside of" in text
    assert "linked" not in text
    for one in page_data(text)["sources"]:
        assert SECRET not in ask(port, f"/{one['url']}")[2]
    sources, problems = find_sources([folder / "runs"])
    assert len(problems) == 2
    (tokens,) = [one for one in sources if one.id == "tokens:runs/e"]
    assert [path.name for path in tokens.paths] == ["batch-4.npz"]


def test_a_symlink_made_later_is_refused(port, folder):
    make_run(folder / "runs" / "f", 3)
    assert "runs/f" in ask(port, "/")[2]
    metrics = folder / "runs" / "f" / "metrics.jsonl"
    metrics.unlink()
    metrics.symlink_to(folder / "secret.jsonl")
    status, _, text = ask(port, "/data/run%3Aruns%2Ff")
    assert status == 422
    assert "points outside of" in text
    metrics.unlink()


def test_a_run_that_is_gone_is_a_sentence(port, folder):
    path = make_run(folder / "runs" / "g", 3)
    assert "runs/g" in ask(port, "/")[2]
    path.rename(folder / "gone")
    status, _, text = ask(port, "/data/run%3Aruns%2Fg")
    assert (status, "is not a run directory" in text) == (422, True)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "169.254.0.1", "[::1]"]
)
def test_foreign_hosts_are_refused(port, host):
    for path in ("/", "/data/run%3Aruns%2Fa"):
        status, _, text = ask(port, path, Host=host)
        assert status == 400
        assert "runs" not in text


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "localhost:9"])
def test_this_machine_is_answered(port, host):
    assert ask(port, "/", Host=host)[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_nothing_but_get(port, method):
    for path in ("/", "/data/run%3Aruns%2Fa"):
        assert ask(port, path, method)[0] == 405


def test_ids_of_equal_names_differ(tmp_path):
    for place in ("x", "y"):
        make_run(tmp_path / place / "run", 3)
    sources, _ = find_sources([tmp_path / "x" / "run", tmp_path / "y" / "run", tmp_path / "x" / "run"])
    assert [one.id for one in sources] == ["run:run", "run:run~2"]


def test_a_taken_port_is_a_sentence(port, folder):
    with pytest.raises(ValueError, match=f"port is {port}, which is not available"):
        serve([folder / "runs"], port, print)


@pytest.mark.parametrize("content", [None, {"notes.txt": "no"}])
def test_a_directory_without_a_run_is_a_sentence(tmp_path, content):
    for name, text in (content or {}).items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=r"contains no run .*no study .*no token log"):
        make_app([tmp_path])
    with pytest.raises(ValueError, match="'nowhere' does not exist"):
        make_app([module.Path("nowhere")])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command(tmp_path, number):
    make_run(tmp_path / "run", 3)
    command = [sys.executable, "-m", "bandpo", "explore", str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    line = process.stdout.readline()
    address = re.match(r"http://127\.0\.0\.1:(\d+)/  \(Ctrl-C to stop\)", line)
    assert address, line + process.stderr.read()
    status, _, text = ask(int(address[1]), f"/data/{quote('run:run', safe='')}")
    assert (status, json.loads(text)["runs"][0]["label"]) == (200, "Band KL 0.05")
    process.send_signal(number)
    rest, errors = process.communicate(timeout=60)
    assert (rest, errors) == ("", "")
    assert process.returncode == (0 if number == signal.SIGINT else 128 + signal.SIGTERM)
