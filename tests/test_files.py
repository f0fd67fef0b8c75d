"""Every JSON file that the package writes is strict JSON, and a directory has one writer."""

import ast
import math
import os
import signal
import subprocess
import sys

import pytest

from bandpo.files import append_line, locked, read_lines, write_json
from helpers import ROOT, held_elsewhere, strict_json


def test_a_directory_has_one_writer_until_it_dies(tmp_path):
    with held_elsewhere(tmp_path):
        with pytest.raises(ValueError, match="another process is working in"), locked(tmp_path):
            raise AssertionError("two writers")
        with pytest.raises(ValueError, match="another process is working in"), locked(tmp_path):
            raise AssertionError("the attempt broke the lock")
    with locked(tmp_path):
        pass  # the other one was killed


def test_a_child_that_outlives_the_writer_holds_nothing(tmp_path):
    code = f"""
import os, pathlib, time
from bandpo.files import locked
with locked(pathlib.Path({str(tmp_path)!r})):
    child = os.fork()
    if child == 0:
        os.close(1)
        time.sleep(600)
    print(child, flush=True)
    os._exit(1)
"""
    ended = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    try:
        with locked(tmp_path):
            pass
    finally:
        os.kill(int(ended.stdout), signal.SIGKILL)


def test_numbers_that_are_not_finite_are_null(tmp_path):
    record = {"step": 1, "ratio": math.inf, "deep": [{"x": (-math.inf, math.nan, 0.5)}], "word": "Infinity"}
    expected = {"step": 1, "ratio": None, "deep": [{"x": [None, None, 0.5]}], "word": "Infinity"}
    append_line(tmp_path / "rows.jsonl", record)
    write_json(tmp_path / "one.json", record)
    assert strict_json(tmp_path / "rows.jsonl") == [expected]
    assert strict_json(tmp_path / "one.json") == [expected]
    assert list(read_lines(tmp_path / "rows.jsonl")) == [expected]


def test_lines_of_older_versions_are_read(tmp_path):
    old = tmp_path / "metrics.jsonl"
    old.write_text('{"step": 1, "divergence": Infinity, "floor": -Infinity, "x": NaN, "y": 2.5}\n{"step": 2')
    with pytest.raises(ValueError, match="Infinity"):
        strict_json(old)
    assert list(read_lines(old)) == [{"step": 1, "divergence": None, "floor": None, "x": None, "y": 2.5}]


@pytest.mark.slow
def test_nobody_writes_json_but_by_the_strict_writers():
    """json.dumps of something that may hold a float says allow_nan=False, or its text goes to no file."""
    writers = ("write", "write_text", "write_atomic", "dump")
    for file in sorted((ROOT / "src" / "bandpo").rglob("*.py")):
        if file.name == "files.py":
            continue
        for call in (x for x in ast.walk(ast.parse(file.read_text())) if isinstance(x, ast.Call)):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if name not in writers:
                continue
            inner = [x for x in ast.walk(call) if isinstance(x, ast.Attribute) and ast.unparse(x) == "json.dumps"]
            assert not inner, f"{file.name}:{call.lineno} writes json.dumps"
            assert ast.unparse(call.func) != "json.dump", f"{file.name}:{call.lineno} calls json.dump"
