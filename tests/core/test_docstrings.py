"""The examples in the docstrings of the public names run, and print what they say."""

import doctest
import inspect

import pytest
import torch

import bandpo


def examples(name):
    """The examples of a public name's own docstring, of its methods too; what its module knows, they know."""
    value = getattr(bandpo, name)
    module = inspect.getmodule(value)
    found = doctest.DocTestFinder().find(
        value, name, module=module, globs=vars(module) | {"torch": torch, "bandpo": bandpo}
    )
    return [one for one in found if one.examples]


@pytest.mark.parametrize("name", bandpo.__all__)
def test_every_public_name_has_an_example_that_runs(name):
    found = examples(name)
    assert any(one.name == name for one in found), "no example"
    said = []
    for one in found:
        doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(one, out=said.append)
    assert "".join(said) == ""


@pytest.mark.parametrize("name", bandpo.__all__)
def test_every_public_name_says_what_it_takes(name):
    value = getattr(bandpo, name)
    text = inspect.getdoc(value)
    if inspect.isfunction(value) and name not in ("inside", "binary_divergence", "certify", "band_table"):
        for heading in ("Args:", "Raises:"):
            assert heading in text, f"{name} has no {heading}"
    assert text.splitlines()[0].endswith((".", ":", "?")), "a summary in one line"
