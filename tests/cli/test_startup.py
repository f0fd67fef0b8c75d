"""The command line starts fast: what PyTorch is not needed for does not import it."""

import json
import os
import subprocess
import sys
from importlib import metadata

import pytest

# Runs commands one after the other in one process; after each, which of the slow packages are there.
CODE = """
import contextlib, io, json, sys
from bandpo.cli import main
report = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["bandpo", *arguments]
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            main()
        code = 0
    except SystemExit as end:
        code = end.code
    slow = [name for name in ("torch", "transformers", "trl", "datasets") if name in sys.modules]
    report.append([arguments, code, slow, said.getvalue()])
print(json.dumps(report))
"""


def run_all(commands, cwd):
    environment = {key: value for key, value in os.environ.items() if key != "BANDPO_DEBUG"}
    result = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(commands)],
        capture_output=True, text=True, cwd=cwd, env=environment, timeout=300, check=True,
    )  # fmt: skip
    return json.loads(result.stdout)


@pytest.mark.slow
def test_help_and_lists_do_without_torch(tmp_path):
    names = [
        "train",
        "eval",
        "grade",
        "compare",
        "samples",
        "simulate",
        "report",
        "inspect",
        "bounds",
        "recipes",
        "tasks",
        "doctor",
        "launch",
    ]
    commands = [["--help"], *([name, "--help"] for name in names), ["launch", "verl", "--help"]]
    for arguments, code, slow, said in run_all([*commands, ["recipes"], ["tasks"], ["compare"]], tmp_path):
        assert (code, slow) == (0, []), arguments
        assert len(said.splitlines()) > 5, arguments


def test_version(tmp_path):
    ((_, code, slow, said),) = run_all([["--version"]], tmp_path)
    assert (code, slow, said) == (0, [], f"bandpo {metadata.version('bandpo')}\n")


MISTAKES = [
    (["trian"], "Did you mean 'train'"),
    (["train"], "Missing argument"),
    (["train", "scratch", "--no-such-option"], "No such option"),
    (["train", "scrach"], "did you mean 'scratch'"),
    (["train", "./no/such.yaml"], "does not exist"),
    (["train", "scratch", "rule.radius"], "not of the form key=value"),
    (["train", "scratch", "modl.path=x"], "did you mean 'model'"),
    (["train", "scratch", "model.pth=x"], "allowed here: path"),
    (["train", "scratch", "model.dtype=float8"], "model.dtype is 'float8'"),
    (["train", "scratch", "task.name=arithmetics"], "did you mean 'arithmetic'"),
    (["train", "scratch", "rule=band"], "allowed: a mapping"),
    (["train", "scratch", "--resume"], "'scratch' is none"),
    (["eval", "m"], "Missing argument"),
    (["eval", "m", "data.jsonl", "--samples", "0"], "--samples"),
    (["eval", "m", "data.jsonl", "--top-p", "0"], "top_p is 0"),
    (["eval", "m", "data.jsonl", "--dtype", "float8"], "did you mean 'float32'"),
    (["eval", "m", "data.jsonl", "--backend", "transfomers"], "did you mean 'transformers'"),
    (["eval", "m", "data.jsonl", "--template", "boxd"], "did you mean 'boxed'"),
    (["eval", "m", "data.jsonl", "--reward", "maths"], "did you mean 'math'"),
    (["eval", "m", "data.jsonl", "--checkpoint", "3"], "not a run directory"),
    (["eval", "m", "data.jsonl", "data.jsonl"], "given twice"),
    (["eval", "m", "nowhere.jsonl"], "does not exist"),
    (["eval", "./nowhere", "data.jsonl"], "does not exist"),
    (["compare", "scrach"], "did you mean 'scratch'"),
    (["compare", "scratch", "methds=1"], "did you mean 'methods'"),
    (["samples", "nowhere"], "'nowhere'"),
    (["report", "nowhere"], "'nowhere' does not exist"),
    (["inspect", "nowhere"], "'nowhere' does not exist"),
    (["explore", "--export", "data.jsonl"], "'data.jsonl', which exists"),
    (["bounds", "--p", "2"], "--p is 2"),
    (["bounds", "--radius", "x"], "--radius"),
    (["bounds", "--plot", "a.pdf"], "'a.pdf'"),
    (["tasks", "arithmetics"], "did you mean 'arithmetic'"),
    (["launch", "verl", "x"], "not of the form MODEL/METHOD"),
]


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "data.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    report = run_all([arguments for arguments, _ in MISTAKES], folder)
    assert [path.name for path in folder.iterdir()] == ["data.jsonl"]
    return {tuple(arguments): rest for arguments, *rest in report}


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "words"), MISTAKES)
def test_mistakes_in_arguments_do_without_torch(mistakes, arguments, words):
    code, slow, said = mistakes[tuple(arguments)]
    assert code in (1, 2)
    assert words in said
    assert "Traceback" not in said
    assert slow == []


def test_a_warning_of_the_data_is_one_line(tmp_path):
    rows = [{"question": "1+1?", "answer": answer} for answer in ("2", "3")]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ((_, code, _, said),) = run_all([["eval", "./nowhere", "data.jsonl"]], tmp_path)
    assert code == 1
    first, error = said.splitlines()
    assert first.startswith("warning: data '")
    assert first.endswith("training uses the first. For example '1+1?' has '2' and '3'")
    assert error.startswith("error: model path './nowhere' does not exist")
