"""Grading in worker processes: right where it should be, and safe whatever it is given."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from bandpo.tasks import grading, last_integer_reward, math_reward
from bandpo.tasks.answers import (
    after_hashes,
    boxed_answer,
    final_answer,
    last_boxed,
    last_tagged,
    plain,
    stated_answer,
)
from bandpo.tasks.grading import Grader
from bandpo.tasks.rewards import math_scores, scores

# Every form that reference answers of competition problems take; no two are equal.
GOLD = [
    "17",
    "-4",
    "0",
    "033",
    "2.75",
    "-0.125",
    "58,500",
    "10,\\!080",
    "11,\\! 222,\\! 333",
    "\\frac{14}{3}",
    "-\\frac{35}{9}",
    "\\dfrac{17}{50}",
    "\\frac43",
    "\\frac 59",
    "\\frac9{19}",
    "7/12",
    "1\\frac{4}{5}",
    "137 \\frac{1}{2}",
    "\\sqrt{51}",
    "11\\sqrt2",
    "3\\sqrt{13}",
    "\\frac{\\sqrt{21}}{5}",
    "\\sqrt[3]{4}",
    "1+2\\sqrt{3}",
    "\\pi",
    "288 \\pi",
    "-\\frac{\\pi}{6}",
    "18+2\\pi",
    "e^{2}",
    "2^{10}+1",
    "6 - 5i",
    "1+274i",
    "1 \\pm \\sqrt{19}",
    "90^\\circ",
    "145^{\\circ}",
    "\\frac{270}7\\text{ degrees}",
    "864 \\mbox{ inches}^2",
    "5.4 \\text{ cents}",
    "12 \\text{ cm}",
    "\\$36",
    "\\$18.90",
    "\\$32,\\!348",
    "25\\%",
    "52_8",
    "4210_{5}",
    "6:30",
    "\\text{Evelyn}",
    "\\text{even}",
    "\\text{(C)}",
    "\\text{ellipse}",
    "\\textbf{(D)}",
    "x=5",
    "y = 2x + 3",
    "5x - 7y + 11z + 4 = 0",
    "p - q",
    "2k+2",
    "x^5 - x^4 + x^3 - x^2 + x - 1",
    "(a+5)(b+2)",
    "\\frac{11+9a}{20}",
    "\\cot x",
    "3R^2",
    "\\left( 3, \\frac{\\pi}{2} \\right)",
    "(-2,1)",
    "(6,31,-1)",
    "(3,4]",
    "[-7,7]",
    "(-\\infty, 0]",
    "(2,12) \\cup (12,102)",
    "x \\in [-2,7]",
    "1,-2",
    "3, 5, 7",
    "\\{1\\pm\\sqrt{5},-2\\}",
    "\\{2, 4, 9\\}",
    "\\begin{pmatrix} -1/3 \\\\ 2/3 \\\\ 5/3 \\end{pmatrix}",
    "\\begin{pmatrix} -1 & 0 \\\\ 0 & -1 \\end{pmatrix}",
    "\\log_2 3",
    "\\binom{9}{4}",
    "8!",
]


@pytest.fixture(scope="module")
def grader():
    grader = Grader("math", workers=2)
    yield grader
    grader.close()


@pytest.fixture
def single():
    grader = Grader("math", workers=1)
    yield grader
    grader.close()


def ask(text, answer="7"):
    return {"texts": [text], "answer": answer}


@pytest.mark.parametrize(
    "form",
    [
        "First \\boxed{3}, but no. The answer is $\\boxed{%s}$.",
        "The answer is %s.",
        "%s",
        "There are 12 of them.\nSo the final answer is $%s$.",
        "<think>\nIt may be 5.\n</think>\n<answer>%s</answer>",
    ],
)
def test_every_answer_equals_itself(form):
    assert [g for g, s in zip(GOLD, math_scores([form % g for g in GOLD], GOLD), strict=True) if s.value != 1] == []


@pytest.mark.slow
def test_math_verify_finds_every_answer_equal_to_itself(grader):
    scores = grader.grade([ask(f"So it is $\\boxed{{{gold}}}$.", gold) for gold in GOLD])
    assert [gold for gold, score in zip(GOLD, scores, strict=True) if score != (1.0, False)] == []


@pytest.mark.parametrize(("form", "shift"), [("The answer is $\\boxed{%s}$.", 1), ("The answer is %s.", 7)])
def test_other_answers_are_wrong(form, shift):
    pairs = [(gold, GOLD[(i + shift) % len(GOLD)]) for i, gold in enumerate(GOLD)]
    scores = math_scores([form % other for _, other in pairs], [gold for gold, _ in pairs])
    assert [pair for pair, score in zip(pairs, scores, strict=True) if score != (0.0, False)] == []


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("\\boxed{\\frac{1}{2}}", "0.5"),
        ("\\boxed{x^2 + 2x + 1}", "(x+1)^2"),
        ("The answer is 2\\sqrt{3}.", "\\sqrt{12}"),
        ("The answer is 1/4", "0.25"),
        ("so we get 12 apples.", "12"),
        ("The total is $1,024 dollars.", "1024"),
        ("<answer>3/6</answer>", "\\frac12"),
        ("\\boxed{1-\\sqrt{19}, 1+\\sqrt{19}}", "1 \\pm \\sqrt{19}"),
        ("\\boxed{-2, 1}", "1,-2"),
        ("The answer is: Evelyn", "\\text{Evelyn}"),
    ],
)
def test_equal_answers_in_another_writing(completion, answer):
    assert math_reward(completion, answer) == 1.0


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("The answer is 2\\sqrt{3}.", "2"),
        ("\\boxed{7} was wrong, it is \\boxed{8}", "7"),
        ("\\boxed{(3,4)}", "(3,4]"),
        ("\\boxed{0.3\\%}", "30\\%"),
        ("oxed{7}", "7"),
        ("The answer is 4 10/3", "10"),
        ("The answer is 2 hours 30 minutes.", "2"),
        ("I do not know", "7"),
        ("", "7"),
    ],
)
def test_unequal_answers(completion, answer):
    assert math_reward(completion, answer) == 0.0


# Kinds of wrong rewards that were seen: the completion is wrong, and was once taken to be right.
FALSE_POSITIVES = [
    ("\\boxed{2}", "2-\\frac{3}{\\mathrm{e}}"),
    ("\\boxed{7}", "5+2\\mathrm{i}"),
    ("\\boxed{4}", "4\\text{i}"),
    ("\\boxed{3\\times 10^{-17}}", "4\\times10^{-18}"),
    ("\\boxed{0.00000031}", "0.00000032"),
    ("\\boxed{0.0}", "3\\times 10^{-16}"),
    ("First \\boxed{9}. In the end \\boxed{11", "9"),
    ("<think>\\boxed{8}</think>\nThe answer is 9.", "8"),
    ("<think>So \\boxed{8}. Wait,", "8"),
    ("The answer is 30 euros because 6 hours at $5$ euros", "5"),
    (
        "\\boxed{\\mathbf{x}=k \\begin{pmatrix}2\\\\5\\end{pmatrix}}",
        "\\mathbf{x}=k \\begin{pmatrix}2\\\\7\\end{pmatrix}",
    ),
    ("The answer is 4.\n\nQuestion: What is 5 + 6?\nThe answer is 11.", "11"),
    ("The answer is 4.<|im_end|>\n<|im_start|>user\nThe answer is 11.", "11"),
    ("\\boxed{5}", "5t"),
    ("\\boxed{1 4}", "5"),
    ("\\boxed{0}", "0.\\overline{6}"),
    ("\\boxed{\\langle 2,7\\rangle}", "2.7"),
    ("\\boxed{2,4,10}", "2,4,\\ldots,10"),
    ("\\boxed{(3,8)}", "x=8, y=3"),
    ("\\boxed{2*7}", "27"),
    ("\\boxed{pots}", "stop"),
]


@pytest.mark.parametrize(("completion", "answer"), FALSE_POSITIVES)
def test_wrong_answers_that_were_once_rewarded(completion, answer):
    assert math_reward(completion, answer) == 0.0


# Kinds of right answers that were once missed.
FALSE_NEGATIVES = [
    ("\\boxed{3.2e11}", "3.2\\times10^{11}"),
    ("\\boxed{4\\times10^{-9}}", "4e-9"),
    ("\\boxed{4<x\\le 9}", "(4,9]"),
    ("\\boxed{(4,9]}", "\\{x \\mid 4 < x \\leq 9\\}"),
    ("\\boxed{x<2 \\text{ or } x>5}", "(-\\infty,2)\\cup(5,\\infty)"),
    ("The answer is 3*pi/4", "\\frac{3\\pi}{4}"),
    ("The answer is 5*sqrt(7)", "5\\sqrt{7}"),
    ("\\boxed{y**3 - 2*y}", "y^3-2y"),
    ("\\boxed{3 2/5}", "\\frac{17}{5}"),
    ("\\boxed{Even}", "even"),
    ("\\boxed{72°}", "72^\\circ"),
    ("\\boxed{–8}", "-8"),
    ("The answer is 3√7.", "3\\sqrt{7}"),
    ("\\boxed{2¾}", "2.75"),
    ("\\boxed{４８}", "48"),
    ("The answer is (−∞,4)∪(6,∞).", "(-\\infty,4)\\cup(6,\\infty)"),
    ("\\boxed{1.5-0.25i}", "\\frac{6-i}{4}"),
    ("The answer is $40 per day, not $20.", "40"),
    ("The answer is \\$40.", "40"),
    ("\\boxed{D: none of them}", "D"),
    ("\\boxed{C) 27}", "C"),
    ("\\boxed{9厘米}", "9"),
    ("答案为9", "9"),
    ("\\boxed{2,75}", "2.75"),
    ("\\boxed{\\frac{5}{11}}", "0.\\overline{45}"),
    ("\\boxed{\\langle 2,-1,4 \\rangle}", "(2,-1,4)"),
    ("The answer is 3, 8, and 11.", "3,8,11"),
    ("<ANSWER>14</ANSWER>", "14"),
    ("<think>a</think>\n<answer>14", "14"),
    ("\\boxed{\\textcolor{blue}{14}}", "14"),
    ("\\boxed{{\\color{red}\\text{14}}}", "14"),
    ("The equation is y = 3x - 4.", "y=3x-4"),
    ("\\boxed{\\mathrm{e}^{3}}", "e^3"),
    ("\\boxed{3.5}", "\\frac{7\\text{ kg}}{2}"),
]


@pytest.mark.parametrize(("completion", "answer"), FALSE_NEGATIVES)
def test_right_answers_that_were_once_missed(completion, answer):
    assert math_reward(completion, answer) == 1.0


@pytest.mark.parametrize(
    ("completion", "answer", "value"),
    [
        ("The answer is $36.00", "36", 1.0),
        ("The answer is 36.4", "36", 0.0),
        ("4,5,6", "6", 1.0),
        ("4,5,6", "456", 0.0),
        ("It is 12,345.", "12345", 1.0),
        ("\u22129", "-9", 1.0),
        ("-9", "\u22129", 1.0),
        ("10-9", "9", 1.0),
        ("0042", "42", 1.0),
        ("1" * 10_000, "1" * 10_000, 1.0),
        ("none", "3", 0.0),
    ],
)
def test_last_integer(completion, answer, value):
    assert last_integer_reward(completion, answer) == value


@pytest.mark.parametrize("answer", ["18.5", "1,2", "x", ""])
def test_last_integer_needs_an_integer(answer):
    with pytest.raises(ValueError, match="needs an integer"):
        last_integer_reward("3", answer)


@pytest.mark.parametrize("value", ["float('nan')", "float('inf')", "None", "[1.0]"])
def test_a_reward_that_is_no_number_is_named(value, tmp_path, monkeypatch):
    (tmp_path / "strange.py").write_text(f"def reward(completion, answer): return {value}", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "strange", raising=False)
    with pytest.raises(ValueError, match="reward 'strange:reward' returned"):
        scores("strange:reward", ["a"], ["b"])


HOSTILE = [
    "\\boxed{10^{10^{10}}}",
    "$9^{9^{9^{9}}}$",
    "\\boxed{((9!)!)!}",
    "\\boxed{\\sum_{k=1}^{1000000000} \\frac{1}{k^2}}",
    "\\boxed{" + "\\frac{1}{" * 300 + "2" + "}" * 300 + "}",
    "\\boxed{" * 300,
    "{" * 100_000,
    "\\boxed{\0}",
    "\\boxed{\ud800}",
    "\u202e\\boxed{½٣}",
    "1" * 1_000_000,
    "-" * 50_000 + "1",
    "\\boxed{__import__('os').abort()}",
]


@pytest.mark.slow
def test_hostile_answers_are_wrong_and_harmless(grader):
    scores = math_scores(HOSTILE, ["7"] * len(HOSTILE), time_limit=0.5)
    assert [score.value for score in scores] == [0.0] * len(HOSTILE)
    assert scores[0].timed_out
    assert not scores[7].timed_out
    assert math_reward("\\boxed{\\frac12}", "0.5") == 1.0


@pytest.mark.slow
def test_order_and_values_do_not_depend_on_the_number_of_workers(grader, single):
    requests = [
        ask("\\boxed{10^{10^{10}}}"),
        *(ask(f"\\boxed{{{i}/2}}", f"{i / 2}") for i in range(8)),
        ask("\\boxed{6}"),
        ask("\\boxed{6}"),
    ]
    expected = [(0.0, True), *[(1.0, False)] * 8, (0.0, False), (0.0, False)]
    assert grader.grade(requests, 0.5) == expected
    assert single.grade(requests, 0.5) == expected
    assert single.grade([]) == []


@pytest.mark.slow
def test_a_worker_outlives_an_answer_that_it_gives_up_itself(single, monkeypatch):
    monkeypatch.setattr(grading, "_GRACE", 60.0)
    nested = "\\boxed{" + "\\frac{1}{" * 300 + "2" + "}" * 300 + "}"
    assert single.grade([ask(nested)], 0.3) == [(0.0, True)]
    process = single._every[0].process
    assert single.grade([ask("\\boxed{7}")]) == [(1.0, False)]
    assert single._every[0].process is process


@pytest.mark.slow
def test_a_worker_that_falls_silent_is_replaced(single):
    assert single.grade([ask("\\boxed{7}")]) == [(1.0, False)]
    stopped = single._every[0].process
    os.kill(stopped.pid, signal.SIGSTOP)
    assert single.grade([ask("\\boxed{7.0}")], 0.2) == [(0.0, True)]
    assert stopped.poll() == -signal.SIGKILL
    assert single.grade([ask("\\boxed{7}")]) == [(1.0, False)]


@pytest.mark.slow
def test_a_worker_that_died_in_its_sleep_costs_no_answer(single):
    single.grade([ask("\\boxed{7}")])
    process = single._every[0].process
    process.kill()
    process.wait()
    assert single.grade([ask("\\boxed{7}")]) == [(1.0, False)]


@pytest.mark.slow
def test_closing_ends_the_workers(single):
    single.grade([ask("\\boxed{7}")])
    process = single._every[0].process
    single.close()
    assert process.poll() is not None


def test_a_missing_package_is_named(single, tmp_path, monkeypatch):
    (tmp_path / "math_verify.py").write_text("raise ImportError('not here')", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ImportError, match=r"pip install 'bandpo\[train\]' \(not here\)"):
        single.grade([ask("\\boxed{7}")])


def test_our_own_files_hide_no_installed_module(single, tmp_path, monkeypatch):
    """A worker runs as a file beside our datasets.py; Python would look for modules in its directory first."""
    fake = "import importlib.util as u; raise ImportError(f'found {u.find_spec(\"mixture\")}')"
    (tmp_path / "math_verify.py").write_text(fake, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ImportError, match="found None"):
        single.grade([ask("\\boxed{7}")])


def test_a_worker_that_cannot_start_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "math_verify.py").write_text("import os; os.abort()", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="did not start"):
        Grader("math", workers=1).grade([ask("\\boxed{7}")])


@pytest.mark.slow
def test_the_worker_does_without_torch():
    command = [sys.executable, "-X", "importtime", "-P", str(grading._WORKER), "math", str(grading.MEMORY_LIMIT)]
    imported = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stderr
    assert "math_verify" in imported
    assert "torch" not in imported


def test_the_worker_limits_its_memory():
    code = f"import runpy; runpy.run_path({str(grading._WORKER)!r})['limit_memory'](1 << 30); bytearray(1 << 31)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "MemoryError" in ended.stderr


@pytest.mark.slow
def test_scripts_without_a_main_guard_forks_and_the_end(tmp_path):
    """A plain script grades, its forked child grades with workers of its own, and no worker outlives it."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, sys
            from bandpo.tasks import grading, last_integer_reward, math_reward
            # Cheap to import: everything that grades is loaded by the workers.
            assert not {"math_verify", "datasets", "trl", "reasoning_gym"} & set(sys.modules)
            assert math_reward("\\\\boxed{1/2}", "0.5") == 1
            workers = [w.process.pid for w in grading.shared_grader("math")._every]
            child = os.fork()
            if child == 0:
                ok = not grading._shared
                ok &= math_reward("\\\\boxed{1/4}", "0.25") == 1
                own = [w.process.pid for w in grading.shared_grader("math")._every]
                grading._close_all()
                os._exit(0 if ok and not set(own) & set(workers) else 1)
            assert os.waitpid(child, 0)[1] == 0
            assert math_reward("\\\\boxed{1/8}", "0.125") == 1
            print(*workers)
            """
        ),
        encoding="utf-8",
    )
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    for pid in map(int, ended.stdout.split()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("\\boxed{1} then \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed 7$.", "7"),
        ("\\fbox{ 3 }", "3"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{1", None),
        ("\\boxed{1} \\boxed{{2}", None),
        ("\\boxed", None),
        ("with \\boxed . The answer is", None),
        ("none", None),
    ],
)
def test_last_boxed(text, found):
    assert last_boxed(text) == found


@pytest.mark.slow
def test_long_texts_are_read_in_time():
    """What runs in the training process must not be slow, whatever the text."""
    for part in (
        "Q:\n",
        "\\boxed{",
        "\\boxed{1}, ",
        "the answer is ",
        "<think>",
        "<answer>",
        "1,111",
        "$1 ",
        "{",
        "answer ",
    ):
        text = part * (300_000 // len(part))
        stated_answer(text)
        final_answer(text)


def test_where_an_answer_stands():
    assert boxed_answer("\\boxed{1}, \\boxed{2} \\text{ and } \\boxed{3}") == "1, 2, 3"
    assert boxed_answer("\\boxed{1} was wrong, it is \\boxed{2}") == "2"
    assert stated_answer("\\boxed{1} then \\boxed{2") is None
    assert stated_answer("<think>\\boxed{1}") is None
    assert plain("1 2") != plain("12")
    assert last_tagged("<answer>1</answer> <answer> 2\n</answer> <answer>3") == "2"
    assert last_tagged("</answer><answer>") is None
    assert after_hashes("so 3.\n#### 1,234") == "1234"
    assert after_hashes("1234") is None
    assert stated_answer("Answer: 5\nthe answer is 6\n") == "6"
    assert stated_answer("one\ntwo") is None
    assert stated_answer(" one line ") == "one line"
    assert plain("$\\left( 3 ,\\ \\dfrac{1}{2}\\right)$.") == "(3,\\frac{1}{2})"
    assert plain("\\text{Evelyn}") == plain("Evelyn") != plain("Navin")
    assert plain("\\leftarrow") == "\\leftarrow"
