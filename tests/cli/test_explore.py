"""bandpo explore"""

import builtins
import json
import re

import pytest

from folders import make_run


def test_explore_writes_the_page_once(bandpo, tmp_path):
    assert "wrote page.html" in bandpo("explore", "--export", "page.html")
    first = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert first.startswith("<!DOCTYPE html>")
    assert first.rstrip().endswith("</html>")
    with pytest.raises(ValueError, match=r"page\.html', which exists; allowed: the name of a new file"):
        bandpo("explore", "--export", "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == first


def test_explore_refuses_a_missing_directory(bandpo):
    with pytest.raises(ValueError, match="'no' is not a directory"):
        bandpo("explore", "--export", "no/page.html")


def test_a_run_is_embedded(bandpo, tmp_path):
    make_run(tmp_path / "run", 8, batches=(4,))
    bandpo("explore", "run", "--export", "run.html")
    text = (tmp_path / "run.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert [(one["id"], one["kind"]) for one in data["sources"]] == [("run:run", "run"), ("tokens:run", "tokens")]
    assert data["sources"][0]["data"]["runs"][0]["steps"]["updates"] == list(range(1, 9))
    assert "connect-src" not in text
    assert len(text) < 1_500_000


def test_a_damaged_study_is_said_and_the_rest_is_shown(bandpo, tmp_path):
    make_run(tmp_path / "all" / "run", 8)
    (tmp_path / "all" / "study").mkdir()
    (tmp_path / "all" / "study" / "metrics.json").write_text("{")
    bandpo("explore", "all", "--export", "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "metrics.json&#39; is damaged" in text
    assert '"id": "run:all/run"' in text
    assert '"id": "study' not in text


def test_explore_without_a_run_is_a_sentence(bandpo, tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments in (("empty", "--export", "page.html"), ("empty",)):
        with pytest.raises(ValueError, match="'empty' contains no run"):
            bandpo("explore", *arguments)
    with pytest.raises(ValueError, match="'nowhere' does not exist"):
        bandpo("explore", "nowhere", "--export", "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_file_has_no_port(bandpo):
    with pytest.raises(ValueError, match="--port and --open are for the server"):
        bandpo("explore", "--export", "page.html", "--port", "8000")


def test_the_server_names_its_extra(bandpo, monkeypatch):
    find = builtins.__import__

    def missing(name, *arguments, **options):
        if name.partition(".")[0] in ("starlette", "uvicorn"):
            raise ImportError(f"No module named {name!r}")
        return find(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ValueError, match=r"pip install 'bandpo\[explore\]' .*'starlette'.*--export"):
        bandpo("explore")
