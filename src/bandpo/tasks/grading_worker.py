"""A process that grades answers, one JSON line in and one out. Started by `bandpo.tasks.grading` as a file.

It imports nothing of this package, which would load torch. Whatever a grader does - loop, recurse, fill the
memory, crash - happens here and not in the training process.
"""

from __future__ import annotations

import base64
import functools
import json
import logging
import os
import pickle
import signal
import sys
from collections.abc import Callable
from typing import Any

Grade = Callable[..., float]


class TimeLimit(BaseException):
    """Not an Exception, so that no library on the way swallows it."""


def math_grader() -> Grade:
    """Mathematical equality by Math-Verify, of the first of `texts` that holds an expression."""
    from math_verify import parse, verify

    read = functools.partial(parse, parsing_timeout=None, raise_on_error=False)

    @functools.lru_cache(maxsize=1024)
    def reference(answer: str) -> list[Any]:
        return read(f"${answer}$") or read(answer)

    def grade(texts: list[str], answer: str) -> float:
        gold = reference(answer)
        found: list[Any] = next(filter(None, map(read, texts)), [])
        return float(verify(gold, found, timeout_seconds=None, raise_on_error=False))

    return grade


def reasoning_gym_grader() -> Grade:
    """The score that a reasoning-gym data set gives to an answer."""
    import reasoning_gym

    create = functools.lru_cache(maxsize=64)(
        lambda dataset, options: reasoning_gym.create_dataset(dataset, **json.loads(options))
    )

    def grade(dataset: str, options: str, entry: str, answer: str) -> float:
        return float(create(dataset, options).score_answer(answer, pickle.loads(base64.b64decode(entry))))

    return grade


GRADERS = {"math": math_grader, "reasoning-gym": reasoning_gym_grader}


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
            # Again and again, since a bare `except:` on the way can swallow the first.
            signal.setitimer(signal.ITIMER_REAL, limit, 0.1)
            value = grade(**request)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except (TimeLimit, MemoryError):
            signal.setitimer(signal.ITIMER_REAL, 0)
            reply(timed_out=True)
        except Exception:  # what it cannot read is wrong
            signal.setitimer(signal.ITIMER_REAL, 0)
            reply(value=0.0)
        else:
            reply(value=value)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
