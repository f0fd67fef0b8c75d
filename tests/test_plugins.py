"""Objects of the user's own by name: what is found, and the one sentence for each way of going wrong."""

from abc import ABC, abstractmethod

import pytest

from bandpo.plugins import load_class, load_function, load_object


class Shape(ABC):
    @abstractmethod
    def area(self): ...


class Square(Shape):
    def area(self):
        return 1


class Blob(Shape):
    pass


NUMBER = 3


def test_an_object_is_found_by_module_and_name():
    assert load_object("math:pi", "number") == pytest.approx(3.14159265)
    assert load_function("math:sqrt", "reward")(4) == 2
    assert load_class(f"{__name__}:Square", "shape", Shape) is Square


def test_the_current_directory_is_searched_last(tmp_path, monkeypatch):
    (tmp_path / "own_thing.py").write_text("value = 7\n")
    (tmp_path / "math.py").write_text("pi = 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    assert load_object("own_thing:value", "thing") == 7
    assert load_object("math:pi", "thing") > 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load_object("math", "reward"), "reward 'math' is not of the form module:Name"),
        (lambda: load_object(":f", "reward"), "reward ':f' is not of the form module:Name"),
        (lambda: load_object("nowhere_:f", "task"), "task 'nowhere_:f': cannot import 'nowhere_': ModuleNotFound"),
        (lambda: load_object("math:sqr", "task"), "task 'math:sqr': math has no 'sqr' (did you mean 'sqrt'?)"),
        (lambda: load_function("math:pi", "reward"), "reward 'math:pi' is a float; allowed: a function"),
        (
            lambda: load_class(f"{__name__}:NUMBER", "shape", Shape),
            f"shape '{__name__}:NUMBER' is a int; allowed: a subclass of {__name__}'s Shape",
        ),
        (
            lambda: load_class("collections:Counter", "shape", Shape),
            f"shape 'collections:Counter' is a class; allowed: a subclass of {__name__}'s Shape",
        ),
        (lambda: load_class(f"{__name__}:Blob", "shape", Shape), f"shape '{__name__}:Blob' lacks area()"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(call, message):
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_module_that_fails_on_import_is_named_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "broken_thing.py").write_text("raise RuntimeError('first\\nsecond')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="cannot import 'broken_thing': RuntimeError: first second"):
        load_object("broken_thing:x", "rule")
