"""Token logs of other frameworks: reading, judging, and bad input."""

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from bandpo.cli.app import app
from bandpo.core.rivals import Clip
from bandpo.core.rules import Band
from bandpo.explore.tokens import token_data
from bandpo.report.dumps import SCHEMA, find_logs, read_log
from bandpo.report.inspection import choose_edge, inspect_log, judge, moves, same_bounds, same_share, sampling
from bandpo.report.why import RIVALS, count_clipped
from bandpo.training.batches import TokenBatch
from helpers import ROOT

DUMPS = Path(__file__).parent / "dumps"
PRIME_RL = DUMPS / "prime_rl_rank_0.jsonl"  # by prime-rl's own exporter
SLIME_TRAIN, SLIME_ROLLOUT = DUMPS / "slime_train_3.pt", DUMPS / "slime_rollout_3.pt"  # by slime's own code
GRPO = "GRPO clip 0.2"


@pytest.fixture
def bandpo(tmp_path, monkeypatch, capsys):
    """The command line in this process: arguments in, (exit code, what it printed) out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        capsys.readouterr()
        code = app(args=["inspect", *map(str, arguments)], standalone_mode=False)
        return code or 0, capsys.readouterr().out

    return run


def log_tokens(*arguments, **columns):
    """The writer of docs/inspect.md, to the letter."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "inspect.md").read_text(encoding="utf-8"), re.S)
    scope = {}
    exec(code, scope)
    scope["log_tokens"](*arguments, **columns)


def draws(shape=(40, 100), vocabulary=60, top_p=1.0, temperature=1.0, drift=0.0, seed=0):
    """Tokens from a policy, and the log-probs and entropies that the docs' writer takes."""
    torch.manual_seed(seed)
    logits = torch.randn(*shape, vocabulary) * 2
    policy, sampler = logits.log_softmax(-1), (logits / temperature).log_softmax(-1)
    values, order = sampler.sort(-1, descending=True)
    kept = values.exp().cumsum(-1) - values.exp() < top_p
    sampler = sampler.masked_fill(~torch.zeros_like(kept).scatter(-1, order, kept), -torch.inf).log_softmax(-1)
    tokens = torch.distributions.Categorical(logits=sampler).sample()
    current = (logits + drift * torch.randn_like(logits)).log_softmax(-1)

    def of(logps):
        return logps.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)

    return {
        "tokens": tokens,
        "mask": torch.ones_like(tokens, dtype=torch.bool),
        "old_logps": of(policy),
        "advantages": torch.randn(shape[0]),
        "logps": of(current),
        "sampling_logps": of(sampler),
        "entropy": -(current.exp() * current).sum(-1),
        "old_entropy": -(policy.exp() * policy).sum(-1),
    }


def write(path, given, *names):
    """By the docs' writer: what it needs, and these columns."""
    needed = [given[name] for name in ("tokens", "mask", "old_logps", "advantages")]
    log_tokens(path, *needed, **{name: given[name] for name in names})
    return path


def line(**changes):
    """A line of the schema, with changes; None leaves a key out."""
    whole = {
        "schema": SCHEMA,
        "tokens": ["a", "b"],
        "old_logps": [-1.0, -2.0],
        "logps": [-0.5, -2.5],
        "advantages": 1,
    }
    return json.dumps({key: value for key, value in (whole | changes).items() if value is not None})


def test_the_writer_of_the_docs_is_read_back(tmp_path):
    given = draws((3, 5), drift=0.5)
    given["mask"][1, 2:] = False
    log = read_log([write(tmp_path / "a.jsonl", given, "logps", "sampling_logps", "entropy", "old_entropy")])
    keep = given["mask"].numpy()
    assert (len(log), log.files[0].masked, log.problems) == (12, 3, [])
    for name in ("old_logps", "logps", "sampling_logps", "entropy", "old_entropy"):
        np.testing.assert_array_equal(log.columns[name], given[name].numpy()[keep])
    np.testing.assert_array_equal(
        log.columns["advantages"], given["advantages"].unsqueeze(1).expand(3, 5).numpy()[keep]
    )
    assert [log.texts[k] for k in log.tokens] == [f"#{k}" for k in given["tokens"].numpy()[keep]]
    assert log.positions.tolist() == [*range(5), 0, 1, *range(5)]


def test_prime_rl_masks_what_its_own_exporter_says(bandpo):
    records = [json.loads(text) for text in PRIME_RL.read_text().splitlines()]
    log = read_log([PRIME_RL])
    masked = [x for r in records for x, counts in zip(r["is_masked"], r["loss_mask"], strict=True) if counts]
    judged = judge(log, choose_edge(log), {"dppo": Band(0.2, "tv")})  # the exporter's thresholds
    assert sum(masked) > 0
    assert judged.clipped[0].tolist() == masked
    assert log.problems == []
    assert log.positions.tolist() == [*range(7), *range(11)]
    code, said = bandpo(PRIME_RL)
    assert code == 0
    assert "prime-rl token export" in said


def test_slime_has_anchor_and_sampler_apart(bandpo):
    log = read_log([SLIME_TRAIN, SLIME_ROLLOUT])
    train, rollout = log.files
    assert (train.tokens, train.having["old_logps"], train.having["sampling_logps"]) == (24, 24, 24)
    assert (rollout.tokens, rollout.having["old_logps"], rollout.having["sampling_logps"]) == (24, 0, 24)
    assert choose_edge(log).new == "old_logps"
    responses = [sample["tokens"][-6:].tolist() for sample in torch.load(SLIME_TRAIN, weights_only=True)["samples"]]
    assert [log.texts[k] for k in log.tokens[:24]] == [f"#{token}" for one in responses for token in one]
    decoded = read_log([SLIME_TRAIN], decode=lambda token: f"<{token}>")
    assert decoded.texts[decoded.tokens[0]] == f"<{responses[0][0]}>"
    assert len(set(log.groups.tolist()) - {-1}) == 2
    code, said = bandpo(SLIME_TRAIN)
    assert code == 0
    assert "ratio = anchor / sampler" in said
    code, said = bandpo(SLIME_ROLLOUT)
    assert "so no ratio" in said


def test_a_pickle_of_objects_is_never_loaded(bandpo, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"samples": [Evil()]}, tmp_path / "a.pt")
    code, said = bandpo("a.pt")
    assert (code, (tmp_path / "ran").exists()) == (1, False)
    assert "weights_only=True" in said


def test_formats_without_log_probs_are_a_sentence(bandpo, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = {"step": [1, 1], "prompt": ["p", "p"], "completion": ["a", "b"]}
    columns = {**texts, "reward": [0.0, 1.0], "advantage": [-1.0, 1.0]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "completions_00001.parquet")
    entry = {"input": "p", "output": "a", "gts": "1", "score": 1.0, "step": 3}
    (tmp_path / "3.jsonl").write_text(json.dumps(entry) + "\n")
    (tmp_path / "empty.jsonl").write_text("")
    code, said = bandpo(".")
    assert code == 0
    assert "2 completions without log-probs" in said
    assert "verl's rollout dump: 1 completions without log-probs" in said
    assert "empty.jsonl is empty." in said


def test_verl_with_log_probs_among_the_extra_values(tmp_path):
    entry = {"input": "p", "output": "ab", "score": 1.0, "step": 3}
    entry |= {"old_log_probs": [-1.0, -0.5], "rollout_log_probs": [-1.1, -0.4]}
    (tmp_path / "3.jsonl").write_text(json.dumps(entry) + "\n")
    log = read_log([tmp_path])
    assert (len(log), log.files[0].format, choose_edge(log).anchor) == (2, "verl rollout dump", "sampling_logps")


def recorded(folder, seed=0):
    """A recorded batch of this package."""
    given = {name: x.numpy() for name, x in draws((12, 30), drift=0.6, seed=seed).items()}
    given["mask"][3, 10:] = False
    advantages = np.broadcast_to(given["advantages"][:, None], (12, 30)).copy()
    advantages[5] = 0
    batch = TokenBatch(
        7, np.array([f"t{i}" for i in range(60)]), given["tokens"].astype(np.int32), given["logps"],
        given["old_logps"], given["entropy"], advantages, given["mask"],
    )  # fmt: skip
    return batch, batch.save(folder)


def test_counts_are_those_of_the_report(tmp_path):
    batch, path = recorded(tmp_path / "run" / "batches")
    (tmp_path / "run" / "config.yaml").write_text("rule: {name: clip}\n")
    assert find_logs(tmp_path / "run") == [path]
    log = read_log([tmp_path / "run"])
    found, counts = inspect_log(log, RIVALS, GRPO), count_clipped(RIVALS, [batch])
    assert found.judged == counts.tokens.sum()
    assert [row.clipped for row in found.rules] == counts.clipped.sum((1, 2)).tolist()
    totals = counts.tokens.sum(1)
    for row, by_bin in zip(found.rules, counts.clipped.sum(2), strict=True):
        assert row.share_by_probability == tuple(c / n if n else None for c, n in zip(by_bin, totals, strict=True))
        assert row.below + row.above == row.clipped > 0
    for place in found.places:
        assert sum(x.share for x in place.positions) == pytest.approx(1)


def test_moves_and_the_radius_of_the_same_share(tmp_path):
    recorded(tmp_path)
    log = read_log([tmp_path])
    judged = judge(log, choose_edge(log), {GRPO: Clip(), "Band": Band()})
    (one,) = moves(judged, GRPO)
    mine, band = (set(np.flatnonzero(x)) for x in judged.clipped)
    assert (one.freed, one.held, one.both) == (len(mine - band), len(band - mine), len(mine & band))
    assert one.freed + one.held + one.both + one.neither == len(judged.where)
    for row in same_share(judged, GRPO):
        again = judge(log, choose_edge(log), {"x": Band(row.radius, row.divergence)})
        assert again.clipped[0].sum() == len(mine)
    epsilon = next(
        r.epsilon for r in inspect_log(log, {GRPO: Clip(), "Band": Band()}, GRPO).rules if r.rule == "Band"
    )
    assert judge(log, choose_edge(log), {"x": Clip(epsilon, epsilon)}).clipped[0].sum() == len(band)


def test_a_radius_and_an_epsilon_with_the_same_bound():
    for row in same_bounds(0.2):
        for divergence, radius in row.radii.items():
            if row.p == 0.9:
                assert radius is None
                continue
            bound = Band(radius, divergence).bounds(torch.tensor(row.p, dtype=torch.float64).log()).upper
            assert float(bound) == pytest.approx(1.2, rel=1e-6)


@pytest.mark.parametrize(
    ("made", "columns", "verdict"),
    [
        ({}, ("old_entropy", "sampling_logps"), "whole"),
        ({"top_p": 0.9}, ("old_entropy",), "narrowed"),
        ({"top_p": 0.9}, ("sampling_logps",), "truncated"),
        ({"temperature": 0.7}, ("old_entropy",), "narrowed"),
        ({"temperature": 1.4}, ("old_entropy",), "flattened"),
        ({"temperature": 1.4}, ("old_entropy", "sampling_logps"), "flattened"),
        ({"top_p": 0.9}, (), "cannot tell"),
        ({"top_p": 0.9, "drift": 0.1, "anchored": "sampling_logps"}, ("logps", "sampling_logps"), "cannot tell"),
        ({"top_p": 0.9, "drift": 1.0}, ("logps", "entropy"), "cannot tell"),
    ],
)
def test_truncated_sampling(tmp_path, made, columns, verdict):
    made = dict(made)
    anchor = made.pop("anchored", "old_logps")
    given = draws(**made)
    given["old_logps"] = given[anchor]
    found = sampling(read_log([write(tmp_path / "a.jsonl", given, *columns)]))
    assert found.verdict == verdict, found
    assert ("p is then not" in found.text) == (verdict != "whole" and bool(columns))


def test_whole_sampling_is_seldom_called_truncated(tmp_path):
    for seed in range(10):
        given = draws((10, 100), drift=0.2, seed=seed)
        given["sampling_logps"] = given["logps"]  # an anchor other than the sampler, drawn from neither is wrong
        log = read_log([write(tmp_path / f"{seed}.jsonl", given, "old_entropy")])
        assert sampling(log).verdict in ("whole", "cannot tell")


BAD = [
    (
        line(old_logps=[-1.0, 0.7]),
        "old_logps[1] is 0.7, expected a log-prob from -1000 to 0; 1 of 2 tokens skipped",
        1,
    ),
    (line(logps=[float("nan"), -1.0]), "logps[0] is nan", 1),
    (line(old_logps=[-1.0, None]), "old_logps[1] is nan", 1),
    (line(logps=[-1.0, -1e400]), "logps[1] is -inf", 1),
    (
        line(entropy=[-1.0, 1.0]),
        "entropy[0] is -1, expected an entropy in nats, at least 0; 1 of 2 tokens without",
        2,
    ),
    (line(advantages=float("inf")), "expected a finite advantage; 2 of 2", 0),
    (line(logps=[-1.0]), "logps has 1 values, expected 2, one per token", 0),
    (line(logps="x"), "logps is a string, expected a list", 0),
    (line(logps=[-1.0, "x"]), "logps[1] is 'x', expected a number", 0),
    (line(logps=[-1.0, True]), "logps[1] is True, expected a number", 0),
    (line(logps=[-1.0, 10**400]), "integer beyond the range of floats", 0),
    (line(tokens=[1.5, 2]), "tokens[0] is 1.5, expected a string or a token id", 0),
    (line(tokens=None), "tokens is missing, expected a list", 0),
    (line(mask=[1, 2]), "mask[1] is 2, expected true or false", 0),
    (line(positions=[-1, 0]), "positions[0] is -1, expected an integer", 0),
    (line(schema="bandpo.tokens/2"), "schema is 'bandpo.tokens/2', expected 'bandpo.tokens/1'", 0),
    (line(old_logps=None, logps=None), "has no log-probs", 0),
    (line()[:40], "is not JSON", 0),
    ("[1, 2]", "is a list, expected a JSON object", 0),
    ('{"a": 1}', "has the unknown keys 'a'; expected a line of", 0),
    ("[" * 200_000, "nested too deeply", 0),
    ('{"token_ids": [1], "inference_logprobs": [-1]}', "has no trainer_logprobs", 0),
]


@pytest.mark.parametrize(("text", "said", "kept"), BAD)
def test_a_bad_line_is_named_and_the_rest_is_shown(tmp_path, text, said, kept):
    path = tmp_path / "a.jsonl"
    path.write_text(f"{line()}\n\n{text}\n{line()}\n")
    log = read_log([path])
    (problem,) = log.problems
    assert said in problem.text
    assert (problem.file, problem.line, len(log)) == (str(path), 3, 4 + kept)


def test_other_bad_files(bandpo, tmp_path):
    (tmp_path / "gz.jsonl").write_bytes(b"\x1f\x8b\x08\x00")
    (tmp_path / "utf.jsonl").write_bytes(b"\xff\xfe{}\n")
    (tmp_path / "cut.jsonl").write_text(line()[:30])
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    torch.save([1], tmp_path / "list.pt")
    code, said = bandpo(".")
    assert code == 1
    for part in (
        "with gzip",
        "not UTF-8",
        "truncated?",
        "is not a recorded batch",
        "contains a list, expected slime's",
    ):
        assert part in said
    archive = (DUMPS / "slime_train_3.pt").read_bytes()
    (tmp_path / "name.pt").write_bytes(archive.replace(b"slime_train_3/data.pkl", b"slime_train_3/data.\xb7kl"))
    assert "is a damaged archive" in bandpo("name.pt")[1]
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="a directory without token logs"):
        bandpo("none")
    with pytest.raises(ValueError, match="did you mean 'radius'"):
        bandpo("cut.jsonl", "--rule", "{name: band, radus: 1}")


def test_a_line_longer_than_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr("bandpo.report.dumps.LONGEST_LINE", 300)
    path = tmp_path / "a.jsonl"
    path.write_text(f"{line()}\n{line(group='x' * 1000)}\n{line()}\n")
    log = read_log([path])
    assert [(p.line, "over 300 bytes long" in p.text) for p in log.problems] == [(2, True)]
    assert len(log) == 4


def test_nothing_in_a_token_is_markup(bandpo, tmp_path):
    nasty = ["[red]x[/red]", "<script>alert(1)</script>", "\x1b[31m", "\ud800", "[/]", ":smile:", "\n"]
    ones = {"old_logps": [-1.0] * 7, "logps": [-0.1] * 7}
    (tmp_path / "a.jsonl").write_text(line(tokens=nasty, **ones) + "\n")
    code, said = bandpo("a.jsonl")
    assert code == 0
    for shown in ("'[red]x[/red]'", "'<script>alert(1)</script>'", r"'\x1b[31m'", r"'\ud800'", "':smile:'", r"'\n'"):
        assert shown in said
    assert "\x1b" not in said
    odd = tmp_path / "odd" / "\x1b[31m\udcff.jsonl"
    odd.parent.mkdir()
    odd.write_text(f'{line()}\n{{"\x1b[31m": 1}}\n{{"\\u001b[31m": 1}}\n')
    _, said = bandpo("odd")
    assert said.count(r"\x1b[31m\udcff.jsonl") == 3
    assert "\x1b" not in said
    _, said = bandpo("a.jsonl", "--json")
    assert json.loads(said)["places"][0]["texts"][0]["clipped"] == 1


def test_json_is_strict_and_complete(bandpo, tmp_path):
    recorded(tmp_path)

    def refuse(constant):
        raise ValueError(constant)

    _, said = bandpo("batch-7.npz", "--rule", "estr", "--json")
    data = json.loads(said, parse_constant=refuse)
    assert data["tokens"] == 340
    assert [row["rule"] for row in data["rules"]] == list(RIVALS)
    assert "old_entropy" in data["skipped"]["ESTR"]
    assert data["reference"] == GRPO
    other = json.loads(bandpo("batch-7.npz", "--epsilon", "0.1", "--epsilon-high", "0.3", "--json")[1])
    assert (other["reference"], other["rules"][0]["rule"], len(other["rules"])) == ("Clip 0.1/0.3",) * 2 + (7,)
    assert {"moves", "same_share", "same_bounds", "ratios", "sampling", "places", "problems"} <= data.keys()


@pytest.mark.slow
def test_two_hundred_damaged_files(bandpo, tmp_path):
    """Bytes changed, cut, repeated or moved, in every format: the command says what it can and never fails,
    and nor does the page."""
    recorded(tmp_path)
    (tmp_path / "own.jsonl").write_text("".join(f"{line(entropy=[1, 2], mask=[1, 1], group=3)}\n" for _ in range(4)))
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"prompt": ["p"], "completion": ["c"]}), tmp_path / "trl.parquet")
    whole = [tmp_path / "batch-7.npz", tmp_path / "own.jsonl", tmp_path / "trl.parquet", PRIME_RL, SLIME_TRAIN]
    chance = random.Random(0)
    codes = []
    for number in range(200):
        source = whole[number % len(whole)]
        data = bytearray(source.read_bytes())
        for _ in range(chance.choice([1, 1, 3, 20])):
            place = chance.randrange(len(data) or 1)
            kind = chance.randrange(5)
            if not data:
                break
            if kind == 0:
                data[place] = chance.randrange(256)
            elif kind == 1:
                data[place] = ord(chance.choice('0123456789-+eE.,:[]{}"nN'))
            elif kind == 2:
                del data[place : place + chance.randrange(1, 30)]
            elif kind == 3:
                data[place:place] = data[:place][-chance.randrange(1, 30) :]
            else:
                del data[max(1, place) :]
        damaged = tmp_path / f"damaged{number}{source.suffix}"
        damaged.write_bytes(data)
        code, said = bandpo(damaged, *(["--json"] if number % 2 else []))
        assert said.strip()
        shown = token_data([damaged])
        json.dumps(shown, allow_nan=False)
        assert shown["problems"] or shown["notes"] or shown["tokens"]
        codes.append(code)
    assert {0, 1} == set(codes)
