"""Runs the page's JavaScript in node."""

import json
import shutil
import subprocess

from bandpo.explore.page import script


def run_node(driver, given, *names):
    """JSON of what `driver` (JavaScript, an expression of `given`) gives, after the page's scripts of these names."""
    node = shutil.which("node")
    if node is None:
        raise AssertionError(
            "these tests run the page's JavaScript: install Node 18 or newer, apt-get install nodejs"
        )
    # JSON has no infinity: it is written as a string on the way back.
    text = "(_, x) => typeof x === 'number' && !Number.isFinite(x) ? String(x) : x"
    source = "\n".join(script(name) for name in names)
    program = f"{source}\nconst given = {json.dumps(given)};\nconsole.log(JSON.stringify(({driver}), {text}));"
    done = subprocess.run([node, "-"], input=program, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
