"""Every rule of notation by its example, and every convention by its line in docs/tasks.md."""

import re
from pathlib import Path

import pytest

from bandpo.tasks.answers import final_answer
from bandpo.tasks.notation import MAX_LENGTH, RULES, canonical, choice, normalize, readings, values_in_order
from bandpo.tasks.rewards import math_scores

PAGE = Path(__file__).parents[2] / "docs" / "tasks.md"


def table(*header):
    """The rows of the table with this header, without the marks of code."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = lines.index(f"| {' | '.join(header)} |") + 2
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        rows.append([cell.removeprefix("`").removesuffix("`") for cell in cells])
    return rows


@pytest.mark.parametrize("rule", RULES, ids=[rule.name for rule in RULES])
def test_every_rule_does_what_its_example_says(rule):
    assert rule.rewrite(rule.before) == rule.after


@pytest.mark.slow
def test_every_convention_holds_as_documented():
    rows = table("convention", "reference", "completion", "reward")
    assert len(rows) > 30
    scores = math_scores([row[2] for row in rows], [row[1] for row in rows])
    assert [row for row, score in zip(rows, scores, strict=True) if score != (float(row[3]), False)] == []


def test_final_answers_stand_where_the_page_says():
    rows = table("rule", "completion", "answer")
    assert [row for row in rows if (final_answer(row[1]) or "") != row[2]] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("－5", "-5"),
        ("x₁₂", "x_{12}"),
        ("\\mathrm x+1", "x +1"),
        ("\\textcolor{red}{\\mathbf{6}}", "{6 }"),
        ("0.\\dot{3}", "\\frac{3}{9}"),
        ("2.(45)", "\\frac{243}{99}"),
        ("3.14159\\ldots", "3.14159\\text{etc}"),
        ("$5 \\mathrm{~m} / \\mathrm{s}$", "5"),
        ("5\\text{ hours }30\\text{ minutes}", "5\\text{ hours }30"),
        ("2e", "2e"),
        ("1.5e-7+1", "(1.5 \\times 10^{-7})+1"),
        ("(1,234)", "(1,234)"),
        ("4 10/3", "4 10/3"),
        ("x_i", "x_i"),
        ("5平方厘米", "5"),
        ("3千米", "3"),
        ("3千", "3千"),
        ("x" * (MAX_LENGTH + 1), "x" * (MAX_LENGTH + 1)),
    ],
)
def test_normalize(text, expected):
    assert normalize(text) == expected


def test_readings_and_text():
    assert readings("1,22") == ["1,22", "1.22"]
    assert readings("1,22,3") == ["1,22,3"]
    assert readings("x>3")[1].replace(" ", "") == "x\\in(3,\\infty)"
    assert readings("x>y") == ["x>y"]
    assert canonical("\\text{Even}") == canonical("even")
    assert canonical("1 2") != canonical("12")
    assert canonical("x") != canonical("X")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("E", "E"),
        ("(C)", "C"),
        ("\\textbf{(D)}", "D"),
        ("\\textbf{(E)}\\ 12", "E"),
        ("B) 12", "B"),
        ("A. {x > 2}", "A"),
        ("E: none of these", "E"),
        ("A, B", None),
        ("(A) or (B)", None),
        ("A: 5 B: 6", None),
        ("E = mc^2", None),
        ("K", None),
        ("12", None),
    ],
)
def test_choice(text, letter):
    assert choice(text) == letter


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("y = 1, x = \\frac{1}{2}", (["y", "x"], "(1, \\frac{1}{2})")),
        ("a_1 = 3; b = 4", (["a_1", "b"], "(3, 4)")),
        ("x = 2", None),
        ("x = 2, 3", None),
        ("x = 2, x = 3", None),
    ],
)
def test_named_values_in_order(text, expected):
    assert values_in_order(text) == expected


def test_dollars_in_prose_are_money():
    assert final_answer("He pays $5 and then $13 more, so $18 in all.") == "18"


def test_an_environment_over_several_lines_is_one_answer():
    matrix = "\\begin{pmatrix}\n1 & 2 \\\\\n3 & 4\n\\end{pmatrix}"
    assert final_answer(f"The answer is {matrix}\nas asked.") == matrix
