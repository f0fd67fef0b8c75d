"""The explorer as one self-contained HTML file: templates, scripts and what they know about the package's rules.

It makes no requests: the content security policy allows only the page's own two scripts, by their hashes, and a
worker made from the first; a served page may also request the data of what was opened from its own server.
"""

from __future__ import annotations

import base64
import hashlib
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from bandpo.core.registry import RULES, make_rule
from bandpo.lab.simulation import load_simulation
from bandpo.report.html import style
from bandpo.version import __version__

STATIC = resources.files("bandpo") / "explore" / "static"
ENGINE = ("band", "sim")  # also needed by the worker
PAGE = ("copy", "plot", "state", "controls", "sources", "run", "judging", "tokens", "saving", "page")
SHOWN = (
    "band", "clip", "dcpo", "ripo", "dppo-tv", "dppo-kl", "ipo", "estr", "adaptive-band", "relaxed-band", "none",
)  # fmt: skip
"""Rules of the registry whose bounds follow from one token; the others read a batch."""
LEFT_OUT = ("description", "rules", "changes", "expected", "lag")  # of a simulation; unused by the page
PROMPTS = 128  # enough to separate the curves, few enough to watch live


@dataclass(frozen=True)
class Preset:
    """A simulation of the package under some of its rules, and what to look for."""

    title: str
    text: str
    simulation: str
    labels: tuple[str, ...]


PRESETS = {
    "bleeds": Preset(
        "The fixed clip bleeds entropy",
        "Tokens that decide nothing, rewarded by a coin flip: to first order nothing should happen on average. Over "
        "200 rollouts the entropy falls furthest under the fixed clip, further than without any clip.",
        "neutral",
        ("Clip", "Band KL", "No clip"),
    ),
    "halves": Preset(
        "The two halves of Band",
        "Band above with a fixed clip below (floor .8), and the reverse (cap 1.2): one token decides, seven do not. "
        "The upper half frees the rare right answer and keeps the entropy; the lower half alone does neither.",
        "deciding",
        ("Band KL", "floor .8", "lower half"),
    ),
    "same": Preset(
        "Nothing differs",
        "The neutral tokens again, with four updates per rollout: fewer of them reach any bound, and the rules end "
        "within a twentieth of a nat of each other.",
        "neutral-few",
        ("Clip", "Band KL", "No clip"),
    ),
}


def script(name: str) -> str:
    """The text of static/NAME.js, an ES module, as a part of one script: without its imports and exports."""
    text = (STATIC / f"{name}.js").read_text(encoding="utf-8")
    return re.sub(r"^export |^import .*?;\n", "", text, flags=re.MULTILINE)


def known_rules() -> dict[str, dict[str, object]]:
    """What the page knows about each rule: its class, the defaults of its options, whether it masks both sides."""
    found: dict[str, dict[str, object]] = {}
    for name in SHOWN:
        rule = make_rule(name)
        options = [option for option in inspect.signature(RULES[name]).parameters if option != "table"]
        found[name] = {
            "class": type(rule).__name__,
            "options": {option: getattr(rule, option) for option in options},
            "twoSided": rule.two_sided,
            "needs": sorted(rule.needs),
        }
    return found


def presets() -> dict[str, dict[str, object]]:
    """The simulations that the page offers: title, text, settings, and rules by label."""
    found: dict[str, dict[str, object]] = {}
    for key, preset in PRESETS.items():
        simulation = load_simulation(preset.simulation)
        settings = {k: v for k, v in simulation.model_dump().items() if k not in LEFT_OUT} | {"prompts": PROMPTS}
        rules = {label: simulation.rules[label] for label in preset.labels}
        found[key] = {"title": preset.title, "text": preset.text, "settings": settings, "rules": rules}
    return found


def page(sources: Sequence[Mapping[str, object]] = (), problems: Sequence[str] = (), served: bool = False) -> str:
    """The whole page.

    Args:
        sources: What was opened: id, kind ("run", "study" or "tokens"), name, and data or its url.
        problems: Sentences on what could not be read.
        served: Whether the page may request data of sources from the server that sent it, and from no other.
    """
    from jinja2 import Environment, PackageLoader
    from markupsafe import Markup

    names = (*PAGE[:-1], "served", PAGE[-1]) if served else PAGE
    engine, rest = ("\n".join(map(script, part)) for part in (ENGINE, names))
    data = {"version": __version__, "rules": known_rules(), "presets": presets(), "sources": list(sources)}
    if sources:
        from bandpo.explore.runs import metrics

        data["metrics"] = metrics()
    loader = PackageLoader("bandpo", "explore/static")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("page.html.jinja").render(
        style=Markup(style()),
        more=Markup((STATIC / "page.css").read_text(encoding="utf-8")),
        hashes=Markup(" ".join(map(_hash, (engine, rest)))),
        engine=Markup(engine),
        rest=Markup(rest),
        data=Markup(json.dumps(data, allow_nan=False).replace("<", "\\u003c")),
        version=__version__,
        problems=problems,
        served=served,
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
