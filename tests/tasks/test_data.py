"""Data as people have it: chat messages, nested columns, many formats, folders, and rows that cannot be used."""

import codecs
import gzip
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from bandpo.evaluation.sampling import encode
from bandpo.integrations.verl_data import verl_rows
from bandpo.tasks import Mixture, Problem, Questions, benchmark
from bandpo.tasks.base import Message
from bandpo.tasks.columns import Columns

ROWS = [
    {"question": "2 + 2?", "answer": "4"},
    {"question": "Half?", "answer": "0.50"},
    {"question": "é?", "answer": "033"},
]
PROBLEMS = [Problem(row["question"], row["answer"]) for row in ROWS]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
CSV = "question,answer\n" + "".join(f"{row['question']},{row['answer']}\n" for row in ROWS)
CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, str | bytes):
        content = "".join(json.dumps(row) + "\n" for row in content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def fault(source, **settings):
    with pytest.raises(ValueError) as caught:
        benchmark(source, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Chat messages


def chat(*turns):
    return [{"role": role, "content": content} for role, content in turns]


SYSTEM, USER = ("system", "Be brief."), ("user", "2 + 2?")
EARLIER = [("user", "1 + 1?"), ("assistant", "2")]


@pytest.fixture
def chatting(tiny):
    tokenizer = tiny[1]
    tokenizer.chat_template = CHAT
    return tokenizer


def asked(tmp_path, tokenizer, prompt, **settings):
    source = write(tmp_path / "chat.jsonl", [{"prompt": prompt, "answer": "4"}])
    task, (problem,) = benchmark(source, question_key="prompt", **settings)
    prompt = task.prompt(problem, tokenizer)
    return prompt if isinstance(prompt, str) else tokenizer.decode(encode(prompt, tokenizer))


@pytest.mark.parametrize(
    ("turns", "settings", "text"),
    [
        ([USER], {}, "<user>2 + 2?<assistant>"),
        ([SYSTEM, USER], {}, "<system>Be brief.<user>2 + 2?<assistant>"),
        ([SYSTEM, *EARLIER, USER], {}, "<system>Be brief.<user>1 + 1?<assistant>2<user>2 + 2?<assistant>"),
        # The template is of the question, the task's system message replaces the data's.
        ([*EARLIER, USER], {"template": "Q: {question}"}, "<user>1 + 1?<assistant>2<user>Q: 2 + 2?<assistant>"),
        ([SYSTEM, USER], {"system": "Think."}, "<system>Think.<user>2 + 2?<assistant>"),
        ([*EARLIER, USER], {"system": "T."}, "<system>T.<user>1 + 1?<assistant>2<user>2 + 2?<assistant>"),
        ([USER], {"chat": False, "template": "qa"}, "Question: 2 + 2?\nAnswer:"),
    ],
)
def test_messages_are_asked_as_chat(tmp_path, chatting, turns, settings, text):
    assert asked(tmp_path, chatting, chat(*turns), **settings) == text
    # A table without nested columns holds them as JSON.
    assert asked(tmp_path, chatting, json.dumps(chat(*turns)), **settings) == text
    parts = [{"role": role, "content": [{"type": "text", "text": content}]} for role, content in turns]
    assert asked(tmp_path, chatting, parts, **settings) == text


def test_messages_that_no_chat_template_can_carry(tmp_path, tiny, chatting):
    assert asked(tmp_path, tiny[1], chat(USER), template="qa", chat=False) == "Question: 2 + 2?\nAnswer:"
    with pytest.raises(ValueError, match=r"'2 \+ 2\?' there are messages \(system\).*task.chat is false"):
        asked(tmp_path, chatting, chat(SYSTEM, USER), chat=False)
    chatting.chat_template = None
    with pytest.raises(
        ValueError, match=r"messages \(user, assistant\), which need a chat template.*the model has none"
    ):
        asked(tmp_path, chatting, chat(*EARLIER, USER))


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (chat(USER, ("assistant", "4")), ["ends with the message of role 'assistant'", "non-empty user message"]),
        (chat(("user", " ")), ["'prompt' ends with", "non-empty"]),
        (chat(("human", "2 + 2?")), ["role 'human' in 'prompt'", "system, user, assistant"]),
        ([{"from": "human", "value": "2 + 2?"}], ["not of messages, each with role and content", "'from': 'human'"]),
        (["2 + 2?"], ["a list in 'prompt' that is not of messages"]),
        ([], ["'prompt' is empty"]),
        ([{"role": "user", "content": [{"type": "image"}]}], ["content is not text", "image"]),
        ([{"role": "user", "content": None}], ["content is not text: None"]),
        (str(chat(USER)), ["chat messages as text in 'prompt' that are not JSON", "'role'"]),
        ({"text": "2 + 2?"}, ["a dict in 'prompt'"]),
    ],
)
def test_prompts_that_are_no_chat_are_named(tmp_path, prompt, words):
    message = fault(write(tmp_path / "a.jsonl", [{"prompt": prompt, "answer": "4"}]), question_key="prompt")
    for word in ["a.jsonl, row 1: ", *words]:
        assert word in message


def verl_row(n):
    return {
        "prompt": chat(SYSTEM, ("user", f"{n} + 2?")),
        "reward_model": {"style": "rule", "ground_truth": str(n + 2)},
        "extra_info": {"index": n, "answers": [n + 2, n + 3]},
    }


def test_verls_parquet(tmp_path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([verl_row(n) for n in range(3)]), tmp_path / "a.parquet")
    keys = {"question_key": "prompt", "answer_key": "reward_model.ground_truth"}
    task, problems = benchmark(str(tmp_path / "a.parquet"), **keys)
    assert [(p.question, p.answer) for p in problems] == [(f"{n} + 2?", str(n + 2)) for n in range(3)]
    assert task.messages(problems[1]) == chat(SYSTEM, ("user", "1 + 2?"))
    # And back: what verl reads keeps the system message.
    again = write(tmp_path / "b.jsonl", verl_rows(problems, "math", "plain"))
    assert benchmark(again, **keys)[1] == problems
    assert verl_rows(problems, "math", "qa")[0]["prompt"] == chat(SYSTEM, ("user", "Question: 0 + 2?\nAnswer:"))
    # Rows from pandas hold numpy's arrays.
    row = pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pandas().to_dict("records")[1]
    assert isinstance(row["prompt"], np.ndarray)
    columns = Columns("prompt", "extra_info.answers.1", None)
    assert columns.problem(row) == Problem("1 + 2?", "4", context=(Message(*SYSTEM),))


CHOICES = {"label": ["A", "B", "C"], "text": ["bank", "river", "sea"]}
ASKED = "Where do fish swim?\nA. bank\nB. river\nC. sea"


@pytest.mark.parametrize(
    ("choices", "answer"),
    [
        (CHOICES, "B"),
        ([{"label": label, "text": text} for label, text in zip(*CHOICES.values(), strict=True)], "B"),
        (CHOICES["text"], "river"),
        (CHOICES["text"], 1),
        (CHOICES["text"], "B"),
    ],
)
def test_choices_stand_below_the_question_and_the_answer_is_a_letter(tmp_path, choices, answer):
    rows = [{"q": "Where do fish swim?", "options": choices, "answer": answer}]
    keys = {"question_key": "q", "choices_key": "options"}
    assert benchmark(write(tmp_path / "a.jsonl", rows), **keys)[1] == [Problem(ASKED, "B")]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert benchmark(str(tmp_path / "a.parquet"), **keys)[1] == [Problem(ASKED, "B")]
    row = pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pandas().to_dict("records")[0]
    assert Columns("q", "answer", choices="options").problem(row) == Problem(ASKED, "B")


def test_a_copy_of_commonsense_qa(tmp_path):
    row = {
        "id": "1",
        "question": "Where do fish swim?",
        "question_concept": "fish",
        "choices": CHOICES,
        "answerKey": "B",
    }
    data = write(tmp_path / "train.jsonl", [row])
    assert benchmark(data, columns="commonsense-qa")[1] == [Problem(ASKED, "B")]
    hidden = write(tmp_path / "test.jsonl", [row | {"answerKey": ""}])
    assert "'answerKey' is empty" in fault(hidden, columns="commonsense-qa")


@pytest.mark.parametrize(
    ("choices", "answer", "words"),
    [
        (CHOICES, "D", "answer 'D' in 'answer' is not one of the choices A, B, C"),
        (["bank", "bank"], "bank", "answer 'bank' in 'answer' is not one of the choices A, B"),
        (CHOICES["text"], 3, "answer '3' in 'answer' is not one of the choices A, B, C"),
        ("A, B or C", "A", "no choices in 'options'; allowed:"),
        ([{"name": "A"}], "A", "no choices in 'options'; allowed:"),
        (["one"], "A", "choices in 'options'; allowed: two or more"),
        ({"label": ["A", "A", "B"], "text": ["x", "y", "z"]}, "A", "choices in 'options'; allowed: two or more"),
        ({"label": ["A", "B"], "text": ["x"]}, "A", "choices in 'options'; allowed: two or more"),
        ({"label": ["A", "B"], "text": ["x", " "]}, "A", "choices in 'options'; allowed: two or more"),
        ({"name": 1}, "A", "choices in 'options'; allowed: two or more"),
        ([], "A", "'options' is empty"),
    ],
)
def test_choices_that_cannot_be(tmp_path, choices, answer, words):
    rows = [{"question": "Where?", "options": choices, "answer": answer}]
    assert words in fault(write(tmp_path / "a.jsonl", rows), choices_key="options")


def test_dapo_keeps_a_system_message(tmp_path):
    _, (problem,) = benchmark(write(tmp_path / "a.jsonl", [verl_row(1)]), columns="dapo-math-17k")
    assert problem == Problem("1 + 2?", "3", context=(Message(*SYSTEM),))


def test_earlier_turns_tell_questions_apart_and_system_messages_do_not(tmp_path):
    conversations = [[*EARLIER, USER], [SYSTEM, *EARLIER, USER], [USER], [SYSTEM, USER]]
    rows = [{"prompt": chat(*turns), "answer": "4"} for turns in conversations]
    keys = {"name": "questions", "question_key": "prompt"}
    other = write(tmp_path / "b.jsonl", [{"prompt": "2 + 2?", "answer": "4"}])
    data = write(tmp_path / "a.jsonl", rows)
    for task in (
        Questions(data=data, heldout_data=other, **keys),
        Mixture(parts=[{"data": data, "heldout": 1, **keys}], heldout_parts=[{"data": data, "heldout": 1, **keys}]),
    ):
        train, heldout = task.problems()
        assert len(train) == len(heldout) == 1
        assert train[0].key != heldout[0].key


# Answers


@pytest.mark.parametrize(
    ("answer", "text"),
    [(["4"], "4"), ([4.0], "4"), ([["4"]], "4"), (["258", "258"], "258"), (4, "4"), (True, "True"), (0.5, "0.5")],
)
def test_answers_of_one_value(tmp_path, answer, text):
    _, (problem,) = benchmark(write(tmp_path / "a.jsonl", [{"question": "?", "answer": answer}]))
    assert problem.answer == text


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (["1", "2"], "2 answers in 'answer', '1', '2'; allowed: one (the key 'answer.0' takes the first)"),
        ([1, 2, 3, 4], "4 answers in 'answer', '1', '2', '3', ...; allowed"),
        ([], "'answer' is empty"),
        ([None], "a NoneType in 'answer'; allowed: a string or a number"),
        ("", "'answer' is empty"),
        (" \n", "'answer' is empty"),
        (None, "'answer' is empty"),
        (float("nan"), "'answer' is empty"),
        ({"value": 1}, "a dict in 'answer'; allowed: a string or a number: {'value': 1}"),
    ],
)
def test_answers_that_cannot_be_used_are_counted(tmp_path, answer, words):
    good, bad = {"question": "2 + 2?", "answer": "4"}, {"question": "?", "answer": answer}
    assert "rows cannot be used" not in fault(write(tmp_path / "a.jsonl", [good, bad]))
    message = fault(write(tmp_path / "a.jsonl", [good, bad, good, {"question": "", "answer": "1"}, bad]))
    assert f"a.jsonl, row 2: {words}" in message
    assert message.endswith(" (3 of 5 rows cannot be used)")


def test_rows_keep_their_numbers_when_levels_are_chosen(tmp_path):
    rows = [{"question": "?", "answer": "1", "level": n} for n in (1, 2, 3)]
    rows[2]["answer"] = ""
    source = write(tmp_path / "a.jsonl", rows)
    assert "row 3: 'answer' is empty" in fault(source, levels=[3])
    assert fault(source, levels=[4, 5]).endswith("has no problems of levels [4, 5]")


def test_several_solutions(tmp_path):
    rows = [{"question": "a", "answer": "1", "solution": s} for s in (["S", "T"], [], None, {"x": 1}, "")]
    _, problems = benchmark(write(tmp_path / "a.jsonl", rows))
    assert [p.solution for p in problems] == ["S", None, None, None, None]


def test_a_question_with_different_answers_is_a_warning_that_counts(tmp_path, recwarn):
    rows = [{"question": f"Is it {i % 4}?", "answer": str(i if i % 4 > 1 else 7)} for i in range(12)]
    source = write(tmp_path / "a.jsonl", rows)
    with pytest.warns(UserWarning, match=r"2 questions occur more than once.*'Is it 2\?' has '2' and '6'"):
        train, heldout = Questions(data=source, heldout=1).problems()
    assert {(p.question, p.answer) for p in train + heldout} == {(f"Is it {i}?", a) for i, a in enumerate("7723")}
    with pytest.warns(UserWarning, match="1 question occurs more than once"):
        benchmark(write(tmp_path / "b.jsonl", [rows[2], rows[6]]))
    recwarn.clear()
    benchmark(write(tmp_path / "c.jsonl", [{"question": "?", "answer": "a  b"}, {"question": "?", "answer": "a b"}]))
    assert not [w for w in recwarn if w.category is UserWarning]


# Columns


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"Question": "?", "answer": "1"},
            "no 'question' (did you mean 'Question'?); its keys are 'Question', 'answer'",
        ),
        ({"question": "?", "final_answer": "1"}, "no 'answer' (did you mean 'final_answer'?)"),
        (
            {"question": "?", "r": {"answer": "1", "x": {}}},
            "no 'answer' (did you mean 'r.answer'?); its keys are 'question', 'r.answer', 'r.x'",
        ),
        ({}, "no 'question'; its keys are none"),
    ],
)
def test_a_missing_column_is_named_with_those_there_are(tmp_path, row, words):
    assert words in fault(write(tmp_path / "a.jsonl", [row]))


def test_keys_lead_into_nested_columns(tmp_path):
    row = {"a": {"b": {"q": "?"}}, "list": ["x", {"y": 5}], "a.b": "dotted", "solution": "s"}
    source = write(tmp_path / "a.jsonl", [row])
    for key, value in {"a.b.q": "?", "list.1.y": "5", "list.0": "x", "a.b": "dotted"}.items():
        assert benchmark(source, question_key=key, answer_key=key)[1] == [Problem(value, value, "s")]
    for key in ("list.2", "list.x", "solution.0", "a.c"):
        assert f"no {key!r}" in fault(source, question_key=key)


# Formats


# By what is special about them: the bytes of a gzip file hold the time and are no name for a test.
FORMAT_CASES = {
    "jsonl": ("a.jsonl", LINES),
    "byte-order mark": ("a.jsonl", codecs.BOM_UTF8 + LINES.encode()),
    "UTF-16": ("a.jsonl", LINES.encode("utf-16")),
    "CRLF": ("a.jsonl", LINES.replace("\n", "\r\n")),
    "gzip without its ending": ("a.jsonl", gzip.compress(LINES.encode())),
    "jsonl.gz": ("a.jsonl.gz", gzip.compress(LINES.encode())),
    "capitals": ("A.JSONL", LINES),
    "lines in json": ("a.json", LINES),
    "json": ("a.json", codecs.BOM_UTF8 + json.dumps(ROWS, indent=1).encode()),
    "wrapped": ("a.json", json.dumps({"version": 1, "data": ROWS}, indent=1)),
    "json.gz": ("a.json.gz", gzip.compress(json.dumps({"rows": ROWS}).encode())),
    "csv": ("a.csv", CSV),
    "csv from a spreadsheet": ("a.csv", codecs.BOM_UTF8 + CSV.replace("\n", "\r\n").encode()),
    "csv with more": ("a.csv", "id,question,answer\n1,2 + 2?,4\n\n2,Half?,0.50\n3,é?,033"),
    "csv.gz": ("a.csv.gz", gzip.compress(CSV.encode())),
    "tsv": ("a.tsv", CSV.replace(",", "\t")),
    "tsv.gz": ("a.tsv.gz", gzip.compress(CSV.replace(",", "\t").encode())),
}


@pytest.mark.parametrize("case", FORMAT_CASES)
def test_formats(tmp_path, case):
    name, content = FORMAT_CASES[case]
    source = write(tmp_path / name, content)
    task, problems = benchmark(source)
    assert problems == PROBLEMS
    assert task.label in ("a", "A")


def test_cells_of_csv_are_text(tmp_path):
    answers = [
        "033",
        "1.50",
        "None",
        "nan",
        "1e5",
        "2024-01-01",
        "TRUE",
        "1,004",
        'a "b"',
        "x\ny",
        "a\u2028b",
        "7" * 200_000,
    ]
    quoted = "".join('q{},"{}"\n'.format(i, a.replace('"', '""')) for i, a in enumerate(answers))
    _, problems = benchmark(write(tmp_path / "a.csv", "question,answer\n" + quoted))
    assert [p.answer for p in problems] == answers


def test_one_object_is_a_row(tmp_path):
    row = {"prompt": chat(USER), "answer": "4"}
    _, problems = benchmark(write(tmp_path / "a.json", json.dumps(row)), question_key="prompt")
    assert problems == [Problem("2 + 2?", "4")]


BAD_FILES = [
    ("a.xlsx", "x", ["a.xlsx has an unknown format", ".jsonl, .json, .csv, .tsv, .parquet", "a folder"]),
    ("data", LINES, ["an unknown format"]),
    ("a.jsonl", "", ["has no problems"]),
    ("a.json", " \n", ["has no problems"]),
    ("a.csv", "", ["has no problems"]),
    ("a.csv", "question,answer\n", ["has no problems"]),
    ("a.jsonl", (LINES).encode("latin-1"), ["a.jsonl, line 3 is not UTF-8 text (byte 0xe9)"]),
    ("a.csv", CSV.encode("cp1252"), ["a.csv, line 4 is not UTF-8 text (byte 0xe9)"]),
    ("a.jsonl.gz", gzip.compress(LINES.encode())[:-12], ["a.jsonl.gz is a damaged gzip file"]),
    ("a.json", '{"data": [{"question"', ["a.json is not JSON"]),
    (
        "a.json",
        json.dumps({"train": ROWS, "test": ROWS}),
        ["several lists of rows, 'train', 'test'; allowed: one"],
    ),
    ("a.json", json.dumps({"data": []}), ["row 1: no 'question'; its keys are 'data'"]),
    ("a.json", "3", ["a.json is a int; allowed: an object"]),
    (
        "a.csv",
        "question,answer\nWhat, then?,4\n",
        ["a.csv, line 2 has 3 cells, but the first line has 2", "quoted"],
    ),
    ("a.csv", 'question,answer\n"What?,4\nx,1\n', ["a.csv, line 3 is not CSV: unexpected end of data"]),
    ("a.csv", "question;answer\nWhat?;4\n", ["no 'question' (did you mean 'question;answer'?)"]),
    ("a.csv", "question,answer\nWhat?\n", ["row 1: no 'answer'"]),
]


@pytest.mark.parametrize("case", range(len(BAD_FILES)))
def test_files_that_cannot_be_read_say_why(tmp_path, case):
    name, content, words = BAD_FILES[case]
    message = fault(write(tmp_path / name, content))
    for word in words:
        assert word in message


# Folders


def test_a_folder_of_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for i, row in enumerate(ROWS):
        write(tmp_path / "one" / f"{i}.csv", f"question,answer\n{row['question']},{row['answer']}\n")
    assert benchmark(str(tmp_path / "one"))[1] == PROBLEMS  # its only split, and 033 is not 33
    write(tmp_path / "two" / "train.jsonl.gz", gzip.compress(LINES.encode()))
    write(tmp_path / "two" / "test.jsonl.gz", gzip.compress(LINES.encode()[: LINES.index("\n") + 1]))
    source = str(tmp_path / "two")
    task, problems = benchmark(source)
    assert problems == PROBLEMS[:1]
    assert task.read(source) == PROBLEMS
    assert benchmark(source, split="train")[1] == PROBLEMS
    assert "has no split 'validation'; its splits are train, test" in fault(source, split="validation")


def test_a_copy_of_a_data_set_from_the_hub(tmp_path):
    card = "---\nconfigs:\n" + "".join(
        f"- config_name: {name}\n  data_files: [{{split: train, path: {name}/*}}]\n" for name in ("main", "other")
    )
    write(tmp_path / "README.md", card + "---\n")
    write(tmp_path / "main" / "a.jsonl", LINES)
    write(tmp_path / "other" / "a.jsonl", LINES[: LINES.index("\n") + 1])
    assert benchmark(str(tmp_path), subset="main")[1] == PROBLEMS
    assert benchmark(str(tmp_path), subset="other")[1] == PROBLEMS[:1]
    assert "['main', 'other']" in fault(str(tmp_path))


def test_save_to_disk(tmp_path):
    from datasets import Dataset, DatasetDict

    data = Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "plain")
    DatasetDict(train=data, test=data.select([0])).save_to_disk(tmp_path / "splits")
    assert benchmark(str(tmp_path / "plain"))[1] == PROBLEMS
    assert benchmark(str(tmp_path / "splits"))[1] == PROBLEMS[:1]
    assert benchmark(str(tmp_path / "splits"), split="train")[1] == PROBLEMS
    assert "its splits are train, test" in fault(str(tmp_path / "splits"), split="dev")
    (tmp_path / "plain" / "dataset_info.json").write_text("x", encoding="utf-8")
    assert "is a damaged folder of save_to_disk" in fault(str(tmp_path / "plain"))


def test_a_directory_where_a_file_was_meant(tmp_path):
    (tmp_path / "a.jsonl").mkdir()
    assert f"{str(tmp_path / 'a.jsonl')!r} is a directory, not a data file" in fault(str(tmp_path / "a.jsonl"))
    write(tmp_path / "a.jsonl" / "x.bin", "x")
    assert "is a directory, not a data file" in fault(str(tmp_path / "a.jsonl"))
    write(tmp_path / "texts" / "x.txt", "x")
    assert "x.txt has an unknown format; allowed: .jsonl" in fault(str(tmp_path / "texts"))


# Paths


def test_a_relative_path_holds_from_anywhere(tmp_path, monkeypatch):
    from bandpo.runs.config import load_config, validate_config

    write(tmp_path / "here" / "a.jsonl", LINES)
    write(tmp_path / "here" / "b.jsonl", LINES)
    write(tmp_path / "here" / "folder" / "a.jsonl", LINES)
    # In a recipe too, a path starts from the current directory.
    recipe = write(tmp_path / "recipe.yaml", "base: word-problems\ntask: {data: a.jsonl, heldout: 1}\n")
    monkeypatch.chdir(tmp_path / "here")
    config = load_config(recipe, ["task.heldout_data=./b.jsonl"])
    stored = config.model_dump(mode="json")
    assert stored["task"]["data"] == str(tmp_path / "here" / "a.jsonl")
    assert stored["task"]["heldout_data"] == str(tmp_path / "here" / "b.jsonl")
    assert Questions(data="../here/folder").data == str(tmp_path / "here" / "folder")
    monkeypatch.chdir(tmp_path)
    again = validate_config(stored)
    assert again == config
    assert again.model_dump(mode="json") == stored
    assert Questions(data=again.task.data, heldout=1).problems()
    assert Questions(data="~").data == str(tmp_path.home())
    for source in ("gsm8k", "me/mine", "nowhere.jsonl"):  # not files that exist
        assert Questions(data=source).data == source


@pytest.mark.parametrize(("more", "refused"), [
    ({"b.csv": "question,answer\n3,4\n"}, True),
    ({"sub/b.parquet": b""}, True),
    ({"b.json": "[]", "dataset_infos.json": "{}", "notes.txt": ""}, False),
    ({"b.csv": "", "README.md": "---\nconfigs:\n- config_name: default\n  data_files: train.jsonl\n---\n"}, False),
])  # fmt: skip
def test_a_folder_of_several_formats_is_refused(tmp_path, more, refused):
    write(tmp_path / "d" / "train.jsonl", LINES)
    for name, content in more.items():
        write(tmp_path / "d" / name, content)
    if refused:
        assert "has files of several formats, such as train.jsonl and b." in fault(str(tmp_path / "d"))
    else:
        assert benchmark(str(tmp_path / "d"))[1]


def test_a_known_name_is_not_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gsm8k").mkdir()
    assert Questions(data="gsm8k").data == "gsm8k"


@pytest.mark.parametrize(
    ("source", "label"), [("x/a.jsonl.gz", "a"), ("me/mine-1.5", "mine-1.5"), ("gsm8k", "gsm8k")]
)
def test_labels(source, label):
    assert Questions(data=source).label == label
