"""Your own task: problems, and how a completion is graded.

python examples/own_task.py                               # shows problems, prompts and grades
bandpo train scratch task.name=own_task:Reverse              # in the folder of this file: trains on it
"""

import random

from bandpo.tasks import Problem, Score, Task

WORDS = "tree river stone cloud apple house light table green quick seven mouse paper chair bread water"


class Reverse(Task):
    """Write a word backward; each letter in the right place counts, so that a beginner can learn."""

    heldout: int = 4

    def problems(self):
        words = WORDS.split()
        random.Random(self.seed).shuffle(words)
        # A recipe with a supervised warm-up first trains the model on the solutions.
        every = [Problem(question=f"{word}:", answer=word[::-1], solution=word[::-1]) for word in words]
        return every[self.heldout :], every[: self.heldout]

    def score(self, problems, completions):
        return [Score(letters_right(p.answer, text)) for p, text in zip(problems, completions, strict=True)]


def letters_right(answer, text):
    """The share of letters in the right place, relative to the longer of the two."""
    return sum(a == b for a, b in zip(answer, text.strip(), strict=False)) / max(len(answer), len(text.strip()))


if __name__ == "__main__":
    task = Reverse(name="own_task:Reverse")
    train, heldout = task.problems()
    print(f"{len(train)} problems to train on, {len(heldout)} held out")
    for completion in (train[0].answer, train[0].answer[:-1], "?"):
        print(repr(task.user_message(train[0])), repr(completion), task.score(train[:1], [completion])[0].value)
