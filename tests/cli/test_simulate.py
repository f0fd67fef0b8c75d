"""bandpo simulate"""

import pytest

from bandpo.lab.simulation import SimulationResult

SHORT = ("prompts=8", "rollouts=2", "updates=2", "vocabulary=8", "first_rank=2")


def test_list(bandpo):
    assert bandpo("simulate").splitlines()[1].startswith("deciding       One token that decides")


@pytest.mark.slow
def test_tables_json_and_picture(bandpo, tmp_path):
    said = bandpo(
        "simulate", "deciding", "neutral", *SHORT, "rules={mine: {name: band, radius: 0.1}}", "--output", "o"
    )
    assert "mine" in said
    assert "Entropy ledger" in said
    assert "kept out" in said
    assert said.count("Entropy ledger by kind of token") == 1, "of neutral there is one kind"
    assert said.count("Entropy ledger by old probability") == 2
    result = SimulationResult.load(tmp_path / "o" / "deciding.json")
    assert list(result.runs) == ["mine"]
    assert result.settings.rollouts == 2
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == [
        "deciding.json", "deciding.png", "neutral.json", "neutral.png",
    ]  # fmt: skip
    before = (tmp_path / "o" / "neutral.json").read_bytes()
    with pytest.raises(ValueError, match="exists and is not overwritten"):
        bandpo("simulate", "neutral", *SHORT, "--output", "o")
    assert (tmp_path / "o" / "neutral.json").read_bytes() == before


def test_expected_beside_seen(bandpo, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "{prompts: 8, rollouts: 2, updates: 1, expected: [{metric: entropy_neutral, rollout: 1, prompts: 8, "
        "values: {band: 9.0}}, {metric: entropy_neutral, rollout: 0, prompts: 8, values: {band: 2.381}}]}"
    )
    said = bandpo("simulate", "mine.yaml")
    assert "Expected and observed" in said
    assert "1 of 2 within 2 standard errors" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["simulate", "neutrl"], "unknown simulation 'neutrl' (did you mean 'neutral'?)"),
        (["simulate", "rollouts=3"], "'rollouts=3' comes without a simulation; known: control, deciding"),
        (["simulate", "neutral", "group=1"], "group is 1: input should be greater than or equal to 2"),
        (["simulate", "neutral", "neutral"], "names are neutral, neutral; allowed: distinct names"),
        (["simulate", "neutral", "rules={a: {name: band, radius: -1}}"], "radius must be > 0 and finite, got -1"),
        (["simulate", "deciding", "answers=64"], "answers is 64; allowed: 1 to 60"),
    ],
)
def test_mistakes_are_one_line(bandpo, arguments, words):
    with pytest.raises(ValueError) as caught:
        bandpo(*arguments)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
