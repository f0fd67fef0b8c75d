"""The exported page: one file, no request, and what it copies is what the package reads."""

import ast
import re
import tomllib
from html.parser import HTMLParser

import pytest
import yaml
from node import run_node

import bandpo as package
from bandpo.core.registry import RULES, make_rule
from bandpo.explore.page import ENGINE, PAGE, SHOWN, known_rules, page, script
from bandpo.training.config import BandGRPOConfig


class Outline(HTMLParser):
    """Elements with their attributes, and the text of scripts."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.elements and self.elements[-1][0] == "script":
            self.scripts.append(data)


@pytest.fixture(scope="module")
def text():
    return page()


def test_the_page_is_one_file_without_a_request(text):
    outline = Outline(text)
    for tag, attributes in outline.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "form"), tag
        assert not [name for name in attributes if name == "src" or name.startswith("on")], attributes
        assert attributes.get("href", "#").startswith("#")
    policy = next(a["content"] for _, a in outline.elements if a.get("http-equiv") == "Content-Security-Policy")
    parts = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert parts["default-src"] == "'none'"
    assert parts["worker-src"] == "blob:"
    assert re.fullmatch(r"'sha256-[\w+/=]{44}' 'sha256-[\w+/=]{44}'", parts["script-src"])
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert "url(" not in text.replace("url(#", "")
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|EventSource|sendBeacon|importScripts|eval)\b", text)
    assert len(text.encode()) < 200_000


def test_the_policy_allows_the_scripts_that_are_there(text):
    import base64
    import hashlib

    runs = re.findall(r"<script(?! type)[^>]*>(.*?)</script>", text, flags=re.DOTALL)
    assert len(runs) == 2
    for source in runs:
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in text


def test_every_label_names_a_control_and_ids_are_unique(text):
    ids = [a["id"] for _, a in Outline(text).elements if "id" in a]
    assert len(ids) == len(set(ids))
    known = set(ids)
    for name in re.findall(r'byId\("([\w-]+)"\)', text):
        assert name in known or name in ("p", "a", "b"), name


def test_the_scripts_are_one_program_without_imports():
    whole = "\n".join(map(script, (*ENGINE, *PAGE)))
    assert not re.search(r"^(import|export) ", whole, flags=re.MULTILINE)
    assert "</script" not in whole
    # In the page they share one scope: a name defined twice would be an error there, and is one here.
    assert run_node("typeof new Function(given)", whole) == "function"


def test_rules_that_are_left_out_read_a_batch():
    assert set(RULES) - set(SHOWN) == {"entropy-band", "position-band", "disagreement-band"}


STATED = [
    *({"name": name} for name in SHOWN),
    {"name": "band", "radius": [1e-7, 0.05], "divergence": "alpha:0.5", "cap": 10, "floor": 0.8},
    {"name": "dcpo", "low": 0.1, "cap": None},
    {"name": "clip", "high": 0.28},
]


def called(text, name):
    """The rule that Python code gives to a function of this name."""
    (call,) = (x for x in ast.walk(ast.parse(text)) if isinstance(x, ast.Call) and getattr(x.func, "id", "") == name)
    stated = {keyword.arg: keyword.value for keyword in call.keywords}.get("rule") or call.args[0]
    return make_rule(**ast.literal_eval(stated))


READERS = {
    "Python": lambda text: eval(re.search(r"^rule = (.*)$", text, re.MULTILINE)[1], {"bandpo": package}),
    "TRL": lambda text: make_rule(**eval(text.split("args = ")[1], {"BandGRPOConfig": lambda rule, **_: rule})),
    "recipe (YAML)": lambda text: make_rule(**yaml.safe_load(text)["rule"]),
    "verl": lambda text: make_rule(**yaml.safe_load(text.splitlines()[2].strip("'").split(".rule=", 1)[1])),
    "slime": lambda text: make_rule(**yaml.safe_load(text)["bandpo_rule"]),
    "prime-rl": lambda text: make_rule(**tomllib.loads(text)["trainer"]["loss"]["kwargs"]["rule"]),
    "SkyRL": lambda text: called(text, "register"),
    "ms-swift": lambda text: called(text, "install"),
    "NeMo-RL": lambda text: called(text, "BandPGLossFn"),
}


def test_what_is_copied_is_the_rule():
    known = known_rules()
    rules = [{"name": one["name"]} | known[one["name"]]["options"] | one for one in STATED]
    driver = """given.rules.map((rule) => Object.fromEntries(
      Object.entries(FORMS).map(([form, write]) => [form, write(rule, given.known[rule.name])])))"""
    for stated, texts in zip(STATED, run_node(driver, {"rules": rules, "known": known}, "copy"), strict=True):
        assert texts.keys() == READERS.keys()
        for form, text in texts.items():
            if form == "prime-rl" and stated.get("cap", 1) is None:
                assert "so cap cannot be removed" in text
                continue
            assert READERS[form](text) == make_rule(**stated), (form, text)


def test_the_trainer_takes_what_is_copied_for_it(tmp_path):
    driver = "FORMS.TRL(given.rule, given.known)"
    known = known_rules()["band"]
    rule = {"name": "band"} | known["options"] | {"radius": [0.01, 0.05]}
    text = run_node(driver, {"rule": rule, "known": known}, "copy").splitlines()[-1]
    args = eval(
        text.removeprefix("args = ").replace('output_dir="out"', "output_dir=out, use_cpu=True, bf16=False"),
        {"BandGRPOConfig": BandGRPOConfig, "out": str(tmp_path)},
    )
    assert make_rule(**args.rule) == package.Band(radius=[0.01, 0.05])


def test_a_damaged_address_is_ignored_with_a_sentence():
    driver = "given.hashes.map(stateOf(given.data).readAddress)"
    data = {"rules": known_rules(), "presets": {"bleeds": {"settings": {}}}}
    bad = [
        "a=bend",
        "a.radius=-1",
        "a.radius=NaN",
        "a.radius=0.1,",
        "b.radius=1",
        "a.divergence=toString",
        "a.cap=.5",
    ]
    bad += [
        "p=1.5",
        "p=",
        "x=1",
        "sim=neutral",
        "sim.updates=0",
        "sim.updates=1e9",
        "sim.optimizer=sgd",
        "a.name=clip",
    ]
    bad += ["a=adaptive-band&a.smallest=4", "constructor=1", "a.floor=1.01", "a.divergence=alpha:1", "a.__proto__=1"]
    bad += ["table=0.1,2", "table=", "match.p=0", "match.epsilon=-1", "match.side=top", "copy.form=C", "copy.rule=c"]
    good = "a=band&a.radius=0.01,0.05&a.divergence=alpha:0.5&a.cap=none&a.floor=0.8&b=dcpo&b.cap=none&p=0.2"
    good += "&sim.updates=4&table=0.1,1&match.p=0.3&match.epsilon=0.1&match.side=lower&copy.form=verl&copy.rule=b"
    *found, fine = run_node(driver, {"data": data, "hashes": [*bad, good]}, "band", "copy", "plot", "state")
    for hash_, one in zip(bad, found, strict=True):
        assert len(one["ignored"]) == 1, (hash_, one["ignored"])
        assert one["state"]["a"]["name"] in SHOWN
        assert one["state"]["p"] == 0.05
    assert fine["ignored"] == []
    assert fine["state"]["chosen"] == [0.1, 1]
    assert fine["state"]["match"] == {
        "p": 0.3,
        "epsilon": 0.1,
        "side": "lower",
    }
    assert make_rule(**fine["state"]["a"]) == package.Band(radius=[0.01, 0.05], divergence="alpha:0.5", floor=0.8)
    assert fine["state"]["b"]["cap"] is None
    assert fine["state"]["sim"]["settings"] == {"updates": 4}


def test_an_address_says_what_it_was_read_from():
    data = {"rules": known_rules(), "presets": {"bleeds": {"settings": {}}}}
    texts = [
        "a=band&b=clip&p=0.05&sim=bleeds",
        "a=adaptive-band&a.radius=0.01,0.05&a.cap=2&b=estr&p=0.2&entropy=2&sim=bleeds&sim.rules=ab&sim.optimizer=adam",
        "a=band&a.divergence=alpha:0.5&b=dcpo&b.cap=none&p=0.05&sim=bleeds&sim.advantage=mean&table=0.1&match.side=lower",
    ]
    driver = """given.texts.map((text) => {
      const { address, readAddress } = stateOf(given.data);
      return address(readAddress(text).state);
    })"""
    assert run_node(driver, {"data": data, "texts": texts}, "band", "copy", "plot", "state") == texts
