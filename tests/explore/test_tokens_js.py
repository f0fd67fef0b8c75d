"""The token panel's numbers against bandpo.report.inspection, through node."""

import json
from pathlib import Path

import numpy as np
import pytest
from node import run_node

from bandpo.core.registry import make_rule
from bandpo.core.rivals import Clip
from bandpo.core.rules import Band
from bandpo.explore.page import SHOWN, known_rules
from bandpo.explore.tokens import token_data
from bandpo.report.dumps import read_log
from bandpo.report.inspection import choose_edge, clipped_positions, clipped_texts, inspect_log, judge, moves
from bandpo.report.ledger import entropy_changes
from logged import batch, lines

DUMPS = Path(__file__).parents[1] / "report" / "dumps"
SCRIPTS = ("band", "judging")


def full(stated):
    return known_rules()[stated["name"]]["options"] | stated


def asked(driver, data, **more):
    return run_node(f"(({{ data, ...more }}) => {driver})(given)", {"data": data} | more, *SCRIPTS)


@pytest.fixture(params=["batch", "lines", "no current policy", "no advantages", "prime-rl", "slime"])
def path(request, tmp_path):
    if request.param == "batch":
        return batch().save(tmp_path)
    if request.param == "prime-rl":
        return DUMPS / "prime_rl_rank_0.jsonl"
    if request.param == "slime":
        return DUMPS / "slime_train_3.pt"
    left_out = {"no current policy": {"logps": None}, "no advantages": {"advantages": None}}
    return lines(tmp_path / "a.jsonl", **left_out.get(request.param, {}))


RULES = [{"name": name} for name in SHOWN] + [
    {"name": "band", "radius": [0.003, 0.01], "cap": 1.3, "floor": 0.8},
    {"name": "band", "radius": 0.02, "divergence": "chi2"},
    {"name": "band", "radius": 0.01, "divergence": "alpha:0.5"},
    {"name": "clip", "high": 0.28},
    {"name": "clip", "low": 0.01, "high": 0.01},
    {"name": "relaxed-band", "radius": 0.3, "low": 0.01, "high": 0.01},
]


def test_counts_are_those_of_inspect(path):
    log = read_log([path])
    rules = {str(i): make_rule(**stated) for i, stated in enumerate(RULES)}
    judged = judge(log, choose_edge(log), rules)
    needs = {name: known["needs"] for name, known in known_rules().items()}
    driver = """(() => {
      const tokens = tokensOf(data);
      const seen = more.rules.map((rule) => judgeTokens(tokens, rule, more.needs[rule.name]));
      const [{ clipped }] = seen;
      return {
        judged: tokens.judged.reduce((a, b) => a + b, 0), skipped: seen.map((one) => one.skipped),
        clipped: seen.map((one) => [...one.clipped].flatMap((hit, i) => (hit ? [i] : []))),
        moves: seen.map((one) => ({ ...compareVerdicts(tokens, one.clipped, clipped), codes: null })),
      };
    })()"""
    found = asked(driver, token_data([path]), rules=[full(one) for one in RULES], needs=needs)
    assert found["judged"] == len(judged.where) > 0
    hits = 0
    for i, (skipped, clipped) in enumerate(zip(found["skipped"], found["clipped"], strict=True)):
        assert (str(i) in judged.skipped) == bool(skipped)
        if not skipped:
            expected = judged.where[judged.clipped[list(judged.rules).index(str(i))]]
            assert clipped == expected.tolist(), RULES[i]
            hits += len(clipped)
    assert hits > 0
    for one in moves(judged, "0"):
        seen = found["moves"][int(one.to)]
        assert [seen[name] for name in ("freed", "held", "both", "neither")] == [
            one.freed, one.held, one.both, one.neither,
        ]  # fmt: skip


def test_ratios_on_the_edge_are_judged_in_single_precision(tmp_path):
    old = np.log(np.linspace(0.01, 0.7, 500)).astype(np.float32)
    columns = [{"old_logps": old, "logps": (old + np.log(np.float32(r))).astype(np.float32)} for r in (0.8, 1.2)]
    text = [
        {"tokens": ["a"] * 500, "advantages": a} | {name: x.tolist() for name, x in one.items()}
        for a, one in zip((-1, 1), columns, strict=True)
    ]
    path = tmp_path / "edge.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in text))
    log = read_log([path])
    expected = judge(log, choose_edge(log), {"clip": Clip()}).clipped[0]
    assert 100 < expected.sum() < 900, "neither all nor none, or nothing is tested"
    clipped = asked(
        "[...judgeTokens(tokensOf(data), more.rule).clipped]", token_data([path]), rule=full({"name": "clip"})
    )
    assert (np.array(clipped, bool) != expected).mean() < 0.02  # exp of two libraries may differ by an ulp


def test_a_p_that_single_precision_rounds_to_one_is_judged_as_the_package_does(tmp_path):
    new = (-np.geomspace(1e-8, 1e-2, 200)).astype(np.float32)
    one = {"tokens": ["a"] * 200, "advantages": -1, "old_logps": [0.0] * 200, "logps": new.tolist()}
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps(one) + "\n")
    log, rule = read_log([path]), {"name": "band", "divergence": "chi2"}
    expected = judge(log, choose_edge(log), {"band": make_rule(**rule)}).clipped[0]
    assert 50 < expected.sum() < 150
    clipped = asked("[...judgeTokens(tokensOf(data), more.rule).clipped]", token_data([path]), rule=full(rule))
    assert clipped == expected.tolist()


def test_places_are_those_of_inspect(path):
    log = read_log([path])
    judged = judge(log, choose_edge(log), {"clip": Clip(0.05, 0.05)})
    driver = """(() => {
      const tokens = tokensOf(data), { clipped } = judgeTokens(tokens, more.rule);
      const { kinds, names } = stretchesOf(tokens);
      return [placesOf(tokens, clipped, tokens.kinds, data.texts, 8), placesOf(tokens, clipped, kinds, names)];
    })()"""
    rule = full({"name": "clip", "low": 0.05, "high": 0.05})
    for seen, expected in zip(
        asked(driver, token_data([path]), rule=rule),
        (clipped_texts(log, judged, "clip"), clipped_positions(log, judged, "clip")),
        strict=True,
    ):
        assert {one["name"] for one in seen} == {place.name for place in expected}
        for one in seen:
            place = next(place for place in expected if place.name == one["name"])
            assert one["clipped"] == place.clipped
            assert (one["share"], one["own"]) == pytest.approx((place.share, place.own))
            assert one["sharePositive"] == pytest.approx(place.share_positive)


def test_the_same_share_is_that_of_inspect(path):
    found = inspect_log(read_log([path]), {"clip": Clip(), "Band": Band()}, "clip")
    driver = """(() => {
      const tokens = tokensOf(data), count = (rule) => judgeTokens(tokens, rule).clipped.reduce((a, b) => a + b, 0);
      return {
        radii: more.divergences.map((name) => thresholdOf(distancesOf(tokens, name), count(more.clip))),
        epsilon: thresholdOf(distancesOf(tokens, null), count(more.band)),
      };
    })()"""
    seen = asked(
        driver, token_data([path]), clip=full({"name": "clip"}), band=full({"name": "band"}),
        divergences=[row.divergence for row in found.same_share],
    )  # fmt: skip
    assert seen["radii"] == [pytest.approx(row.radius, rel=1e-5) for row in found.same_share]
    assert seen["epsilon"] == pytest.approx(found.rules[1].epsilon, rel=1e-5)


def test_the_entropy_effect_is_that_of_the_ledger(tmp_path):
    one = batch()
    data = token_data([one.save(tmp_path)])
    seen = asked("[...tokensOf(data).columns.effect]", data)
    assert seen == pytest.approx(entropy_changes(one)[one.mask].tolist(), rel=1e-5, abs=1e-7)


def test_the_next_disagreement_goes_round_and_passes_agreement_over():
    driver = "given.map(([from, step]) => nextDisagreement([0, 1, 3, 2, 0], [4, 3, 2, 1, 0], from, step))"
    cases = [(None, 1), (None, -1), (3, 1), (1, 1), (1, -1), (3, -1), (0, 1)]
    assert run_node(driver, cases, *SCRIPTS) == [3, 1, 1, 3, 3, 1, 3]
    assert run_node("nextDisagreement([0, 3], [0, 1], null, 1)", None, *SCRIPTS) is None


def test_levels_and_ticks_of_the_colors(tmp_path):
    driver = """Object.keys(SCALES).map((name) => {
      const scale = scaleFor(tokensOf(data), name);
      const { ticks, top, values } = scale ?? {};
      return scale && { name, ticks, top, levels: [...levelsFor(scale)], values: [...values] };
    })"""
    found = asked(driver, token_data([lines(tmp_path / "a.jsonl")]))
    p, ratio, advantage, entropy, gap, effect = found
    assert effect is None, "the slopes are recorded by this package alone"
    assert ratio["ticks"] == ["≤ 0.5", "0.707", "1", "1.41", "≥ 2"]
    assert p["ticks"] == ["1", "0.1", "0.01", "0.001", "≤ 0.0001"]
    for one in (p, ratio, advantage, entropy, gap):
        for level, value in zip(one["levels"], one["values"], strict=True):
            size = round(min(abs(float(value)) / one["top"], 1) * 12)
            assert abs(level % 128 - size) <= 1, one["name"]
            assert level < 128 or value < 0
    assert set(advantage["levels"]) >= {0, 12}
    assert max(ratio["levels"]) > 128
    assert all(scale is None for scale in asked(driver, token_data([lines(tmp_path / "b.jsonl", completions=0)])))
