"""A process that grades answers, one JSON line in and one out. Started by `bandpo.tasks.grading` as a file.

It imports nothing from this package, which would load torch. Whatever a grader does - loop, recurse, fill the
memory, crash - happens here and not in the training process.
"""

from __future__ import annotations

import base64
import functools
import importlib.util
import json
import logging
import os
import pickle
import re
import signal
import sys
from collections.abc import Callable
from typing import Any

Grade = Callable[..., float]


class TimeLimit(BaseException):
    """Not an Exception, so that no library in between swallows it."""


def _sibling(name: str) -> Any:
    """Load a module from a file next to this one: importing it by name would load the whole package."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), f"{name}.py")
    specification = importlib.util.spec_from_file_location(f"bandpo_worker_{name}", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


class MathGrader:
    """Mathematical equality by Math-Verify, of the first of `texts` that gives an answer.

    `answers` finds the answer and `notation` puts it in canonical form; both are ours. Math-Verify decides whether
    two answers are equal.
    """

    def __init__(self) -> None:
        import math_verify
        from latex2sympy2_extended import NormalizationConfig

        self.answers, self.notation = _sibling("answers"), _sibling("notation")
        # Its unit handling would remove the variables in 5m, 2t and 3c; `notation` has already removed the units.
        plain = NormalizationConfig(
            basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
        )
        self._targets = [math_verify.LatexExtractionConfig(boxed_match_priority=-1, normalization_config=plain)]
        self._parse, self._verify = math_verify.parse, math_verify.verify
        self.parse = functools.lru_cache(maxsize=4096)(self._read)
        self.reference = functools.lru_cache(maxsize=1024)(self._reference)
        self.equal("0.25", "\\frac{1}{4}")  # lazy loading must not count toward an answer's time

    def __call__(self, texts: list[str], answer: str) -> float:
        found = next(filter(None, map(self.answers.final_answer, texts)), None)
        return float(found is not None and self.equal(found, self.reference(answer)))

    def _reference(self, answer: str) -> str:
        boxed: str | None = self.answers.last_boxed(answer)
        return answer if boxed is None else boxed

    def equal(self, found: str, answer: str) -> bool:
        letter = self.notation.choice(answer)
        if letter is not None and (chosen := self.notation.choice(found)) is not None:
            return bool(letter == chosen)
        golds, others = self.notation.readings(answer), self.notation.readings(found)
        if self.notation.canonical(golds[0]) == self.notation.canonical(others[0]) != "":
            return True
        if golds[0].endswith("\\%") and others[0].endswith("\\%"):
            golds, others = golds[-1:], others[-1:]
        bases = self.notation.base(golds[0]), self.notation.base(others[0])
        if None not in bases and bases[0] != bases[1]:
            return False
        return any(self.same(gold, other) for gold in golds for other in others)

    def same(self, gold: str, other: str) -> bool:
        """Whether Math-Verify finds two texts in the common notation equal, decimals exactly."""
        gold, other = self._ordered(gold, other)
        exact = self.notation.exact
        if self.verified(exact(gold), exact(other), 6, self._precision(gold + other)):
            return True
        return self.rounded(gold, other) or self.rounded(other, gold)

    def rounded(self, decimal: str, number: str) -> bool:
        """Whether a decimal is an infinite one, such as 1/3 or \\sqrt 2, rounded to its last written place."""
        written = self.notation.decimals(decimal)
        if len(written) != 1 or self.notation.exact(number) != number:
            return False
        values = self.parse(number)
        if not values or not getattr(values[0], "is_number", False):
            return False
        value = values[0].doit()
        if value.is_Rational and pow(10, value.q.bit_length(), value.q) == 0:
            return False
        places = len(written[0].partition(".")[2])
        return self.verified(number, decimal, places, 15)

    def verified(self, gold: str, other: str, float_rounding: int, numeric_precision: int) -> bool:
        golds, others = self.parse(gold), self.parse(other)
        return any(
            self._verify(
                one,
                two,
                float_rounding=float_rounding,
                numeric_precision=numeric_precision,
                allow_set_relation_comp=True,
                timeout_seconds=None,
                raise_on_error=False,
            )
            and not self.vacuous(one, two)
            for one in golds
            for two in others
        )

    def _read(self, text: str) -> tuple[Any, ...]:
        if not self.notation.is_readable(text):
            return ()
        return tuple(
            self._parse(
                f"${text}$",
                self._targets,
                fallback_mode="no_fallback",
                extraction_mode="first_match",
                parsing_timeout=None,
                raise_on_error=False,
            )
        )

    def _ordered(self, gold: str, other: str) -> tuple[str, str]:
        """x = 2, y = 1 as (2, 1) if the other side does not name its values: Math-Verify would sort them."""
        named, plain = self.notation.values_in_order(gold), self.notation.values_in_order(other)
        if named and not plain:
            return named[1], other
        if plain and not named:
            return gold, plain[1]
        return gold, other

    @staticmethod
    def _precision(text: str) -> int:
        """Digits of precision to use, because Math-Verify treats a difference below its precision as 0."""
        powers = [int(power) for power in re.findall(r"\^\s*\{?\s*-\s*(\d{1,3})(?!\d)", text)]
        return 30 + min(len(text), 200) + sum(powers[:10])

    def vacuous(self, gold: Any, other: Any) -> bool:
        """Whether two equations are equal to Math-Verify only because SymPy finds no solution of either."""
        from sympy import Eq, solve

        if not (isinstance(gold, Eq) and isinstance(other, Eq)):
            return False
        try:
            if solve(gold, gold.free_symbols):
                return False
        except Exception:
            return False  # then Math-Verify has not solved it either
        return not (
            self._verify(gold.lhs, other.lhs, timeout_seconds=None)
            and self._verify(gold.rhs, other.rhs, timeout_seconds=None)
        )


def reasoning_gym_grader() -> Grade:
    """The score that a reasoning-gym data set gives to an answer."""
    import reasoning_gym

    create = functools.lru_cache(maxsize=64)(
        lambda dataset, options: reasoning_gym.create_dataset(dataset, **json.loads(options))
    )

    def grade(dataset: str, options: str, entry: str, answer: str) -> float:
        return float(create(dataset, options).score_answer(answer, pickle.loads(base64.b64decode(entry))))

    return grade


GRADERS: dict[str, Callable[[], Grade]] = {"math": MathGrader, "reasoning-gym": reasoning_gym_grader}


def limit_memory(size: int) -> None:
    import resource

    try:
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    except (ValueError, OSError):
        logging.getLogger(__name__).debug("this system does not limit the memory of a process")


def main(kind: str, memory: int) -> None:
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a library that prints must not disturb the replies

    def reply(**values: Any) -> None:
        print(json.dumps(values), file=replies, flush=True)

    def expired(signum: int, frame: Any) -> None:
        raise TimeLimit

    limit_memory(memory)
    logging.disable(logging.CRITICAL)
    try:
        grade = GRADERS[kind]()
    except ImportError as error:
        reply(missing=str(error))
        return
    reply(ready=True)
    signal.signal(signal.SIGALRM, expired)
    for line in sys.stdin:
        request = json.loads(line)
        limit = request.pop("limit")
        try:
            # Repeatedly, because a bare `except:` in between can swallow the first.
            signal.setitimer(signal.ITIMER_REAL, limit, 0.1)
            value = grade(**request)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except (TimeLimit, MemoryError):
            signal.setitimer(signal.ITIMER_REAL, 0)
            reply(timed_out=True)
        except Exception:  # an answer that it cannot read is wrong
            signal.setitimer(signal.ITIMER_REAL, 0)
            reply(value=0.0)
        else:
            reply(value=value)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
