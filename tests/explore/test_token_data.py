"""Logged tokens as data of the page: complete, strict, within the limit, and shown whatever else is damaged."""

import base64
import json
import random
from pathlib import Path

import numpy as np
import pytest

from bandpo.cli.inspect import as_document
from bandpo.core.rivals import Clip
from bandpo.core.rules import Band
from bandpo.explore.page import page
from bandpo.explore.tokens import token_data
from bandpo.report.dumps import read_log
from bandpo.report.inspection import inspect_log
from bandpo.training.batches import TokenBatch
from helpers import ROOT
from logged import NASTY, batch, lines

DUMPS = ROOT / "tests" / "report" / "dumps"
TYPES = {"f4": "<f4", "u1": "u1", "u2": "<u2", "u4": "<u4"}


def unpacked(packed):
    return np.frombuffer(base64.b64decode(packed["base64"], validate=True), TYPES[packed["type"]])


def strict(data):
    """The data after a trip through JSON that knows no NaN."""
    return json.loads(json.dumps(data, allow_nan=False).encode("utf-8"))


def test_every_token_arrives_exactly(tmp_path):
    one = batch()
    data = strict(token_data([one.save(tmp_path)]))
    keep = one.mask
    for name in ("logps", "old_logps", "entropy", "advantages"):
        np.testing.assert_array_equal(unpacked(data["columns"][name]), getattr(one, name)[keep])
    assert data["columns"]["sampling_logps"] is None
    assert [data["texts"][k] for k in unpacked(data["kinds"])] == one.texts[one.tokens[keep]].tolist()
    assert np.diff(unpacked(data["starts"])).tolist() == keep.sum(1).tolist()
    assert unpacked(data["positions"]).tolist() == np.broadcast_to(np.arange(30), keep.shape)[keep].tolist()
    assert data["groups"] == one.groups.tolist()
    assert data["names"] == one.prompts.tolist()
    assert data["places"] == [[0, row + 1] for row in range(12)]
    assert (data["tokens"], data["completions"], data["prompts"], data["left_out"]) == (keep.sum(), 12, 3, "")
    assert data["edge"]["new"] == "logps"
    assert (data["problems"], data["notes"], data["more_problems"]) == ([], [], 0)


def test_a_recorded_batch_without_prompts_or_slopes_is_shown_without_them(tmp_path):
    one = batch()
    older = TokenBatch(3, one.texts, one.tokens, one.logps, one.old_logps, one.entropy, one.advantages, one.mask)
    data = strict(token_data([older.save(tmp_path)]))
    assert (set(data["groups"]), data["names"], data["columns"]["effect"], data["prompts"]) == ({-1}, [], None, 0)


def test_lines_bring_prompts_of_their_own(tmp_path):
    data = strict(token_data([lines(tmp_path / "a.jsonl")]))
    assert data["names"] == ["prompt 0", "prompt 1"]
    assert data["groups"] == [0, 1, 0, 1, 0, 1]
    assert all(data["columns"][name] for name in ("sampling_logps", "old_entropy", "entropy"))
    data = token_data([lines(tmp_path / "b.jsonl", prompt=None, group="x")])
    assert (data["names"], set(data["groups"])) == ([""], {0})
    (problem,) = token_data([lines(tmp_path / "c.jsonl", completions=1, prompt=["x"])])["problems"]
    assert "prompt is a list, expected a string" in problem["text"]


@pytest.mark.parametrize("name", ["prime_rl_rank_0.jsonl", "slime_train_3.pt", "slime_rollout_3.pt"])
def test_the_dumps_of_other_frameworks(name):
    log, data = read_log([DUMPS / name]), strict(token_data([DUMPS / name]))
    assert len(unpacked(data["kinds"])) == data["tokens"] == len(log) > 0
    assert [data["texts"][k] for k in unpacked(data["kinds"])] == [log.texts[k] for k in log.tokens]
    assert (data["edge"] is None) == (name == "slime_rollout_3.pt")


@pytest.mark.parametrize("limit", [1, 60, 200, 10**6])
def test_more_than_the_limit_is_said_and_spread_over_whole_prompts(tmp_path, limit):
    for step in range(1, 7):
        batch(step=step, seed=step).save(tmp_path)
    data, whole = strict(token_data([tmp_path], limit=limit)), read_log([tmp_path])
    shown, starts = len(unpacked(data["kinds"])), unpacked(data["starts"])
    assert 0 < shown <= limit
    assert starts[-1] == shown
    assert len(starts) == len(data["groups"]) + 1 == len(data["places"]) + 1
    assert (np.diff(starts.astype(int)) > 0).all()
    assert data["tokens"] == len(whole)
    if limit == 10**6:
        assert (data["left_out"], shown) == ("", len(whole))
        return
    assert f"{shown:,} of {len(whole):,} tokens are shown" in data["left_out"]
    if limit == 200:
        assert len({file for file, _ in data["places"]}) >= 2, "files at both ends of the log"
        assert shown > limit / 3
        kept = {tuple(place) for place in data["places"]}
        groups = {tuple(place): group for place, group in zip(whole.places.tolist(), whole.groups, strict=True)}
        chosen = {groups[place] for place in kept}
        assert kept == {place for place, group in groups.items() if group in chosen}, "whole prompts"


def test_a_limit_below_one_is_refused():
    with pytest.raises(ValueError, match="limit is 0; allowed: a number of tokens >= 1"):
        token_data([DUMPS], limit=0)


def test_bad_files_are_listed_and_the_rest_is_shown(tmp_path):
    path = lines(tmp_path / "a.jsonl", completions=3)
    whole = path.read_text().splitlines()
    first = json.loads(whole[0])
    first["logps"][0], first["entropy"][0] = float("nan"), -3
    short = json.loads(whole[1])
    short["old_logps"].pop()
    path.write_text("\n".join([json.dumps(first), json.dumps(short), '{"x": 1}', whole[2], whole[2][:100]]))
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\n")
    saved = batch().save(tmp_path)
    (tmp_path / "cut.npz").write_bytes(saved.read_bytes()[:500])
    data = strict(token_data([tmp_path]))
    found = {(Path(one["file"]).name, one["line"]) for one in data["problems"]}
    assert found == {("a.jsonl", n) for n in (1, 2, 3, 5)} | {("bytes.jsonl", 1), ("cut.npz", None)}
    assert all("expected" in one["text"] for one in data["problems"])
    assert [one["text"] for one in data["notes"]] == ["is empty"]
    kept = len(first["tokens"]) - 1 + len(json.loads(whole[2])["tokens"]) + int(batch().mask.sum())
    assert len(unpacked(data["kinds"])) == data["tokens"] == kept


def test_problems_beyond_the_first_are_counted(tmp_path):
    (tmp_path / "a.jsonl").write_text("x\n" * 450)
    data = token_data([tmp_path])
    assert (len(data["problems"]), data["more_problems"], data["tokens"]) == (200, 250, 0)


def test_nothing_of_a_log_is_markup_in_the_page(tmp_path):
    (tmp_path / "\udcff<b>.jsonl").write_text(
        json.dumps(
            {
                "tokens": [*NASTY, "\ud800", "</script><script>alert(1)", "x" * 5000],
                "old_logps": [-1] * (len(NASTY) + 3),
            }
            | {"group": "g", "prompt": "</script><!-- \ud800"}
        )
    )
    data = strict(token_data([tmp_path]))
    assert "\\ud800" in data["texts"]
    assert max(map(len, data["texts"])) == 300
    source = {"id": "t0", "kind": "tokens", "name": "<img src=x>", "data": data}
    text = page([source])
    text.encode("utf-8")
    assert text.count("<script") == page().count("<script")
    for nasty in ("<script>alert", "<img src", "<!-- "):
        assert nasty not in text


WRONG = (
    None, True, -1, 0, 1.5, 1e400, float("nan"), 10**30, "", "x", "\ud800", [], [[]], [None], ["x"], {}, {"a": 1},
    [1e9] * 3, [True] * 9,
)  # fmt: skip
VERL = {
    "input": "p",
    "output": "ab",
    "score": 1.0,
    "step": 3,
    "old_log_probs": [-1.0, -0.5],
    "log_probs": [-0.9, -1.5],
}


def spoiled(value, chance):
    """A value of JSON with some part of it, of any depth, of a wrong type or gone."""
    if not isinstance(value, (dict, list)) or not value or chance.random() < 0.3:
        return chance.choice(WRONG)
    value = value.copy()
    key = chance.choice(list(value)) if isinstance(value, dict) else chance.randrange(len(value))
    if chance.random() < 0.2:
        del value[key]
    else:
        value[key] = spoiled(value[key], chance)
    return value


def spoiled_array(array, chance):
    """An array of another type, shape or content."""
    flat = np.ravel(array)
    kind = chance.randrange(6)
    if kind == 0:
        return array.astype(chance.choice(["U8", "S3", "f2", "f8", "i8", "?"]), casting="unsafe")
    if kind == 1:
        return np.array(chance.choice([1, "x", np.nan, [["a"]], 10**12]))
    if kind == 2:
        return flat[: chance.randrange(len(flat))]
    if kind == 3:
        return np.atleast_1d(array)[None]
    if kind == 4:
        return np.roll(array, 1)
    flat = flat.copy()
    flat[chance.randrange(len(flat))] = chance.choice([99, -1])
    return flat.reshape(array.shape)


@pytest.mark.slow
def test_two_hundred_files_of_wrong_types(tmp_path):
    """Every format with a part of a wrong type: a sentence on it, or its tokens, and never a failure."""
    import torch

    chance = random.Random(16)
    own = [json.loads(text) for text in lines(tmp_path / "own.jsonl").read_text().splitlines()]
    prime_rl = [json.loads(text) for text in (DUMPS / "prime_rl_rank_0.jsonl").read_text().splitlines()]
    slime = [torch.load(DUMPS / f"slime_{kind}_3.pt", weights_only=True) for kind in ("train", "rollout")]
    recorded = dict(np.load(batch().save(tmp_path)))
    said = kept = 0
    for number in range(200):
        kind = number % 6
        if kind == 0:
            path = tmp_path / f"{number}.npz"
            name = chance.choice(list(recorded))
            np.savez(path, **recorded | {name: spoiled_array(recorded[name], chance)})
        elif kind in (1, 2):
            path = tmp_path / f"{number}.pt"
            torch.save(spoiled(slime[kind - 1], chance), path)
        else:
            path = tmp_path / f"{number}.jsonl"
            records = {3: own, 4: prime_rl, 5: [VERL]}[kind]
            path.write_text("".join(json.dumps(spoiled(one, chance)) + "\n" for one in records))
        data = strict(token_data([path]))
        log = read_log([path])
        document = json.loads(as_document(log, inspect_log(log, {"clip": Clip(), "band": Band()}, "clip")))
        assert len(document["problems"]) == len(data["problems"]) + data["more_problems"]
        assert document["tokens"] == data["tokens"] == len(unpacked(data["kinds"]))
        empty = [file for file in data["files"] if file["format"] and not file["masked"]]
        assert data["problems"] or data["notes"] or data["tokens"] or not empty, path
        said, kept = said + bool(data["problems"]), kept + bool(data["tokens"])
    assert said > 100
    assert kept > 50


def test_paths_that_do_not_exist_are_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        token_data([tmp_path / "none.jsonl"])
