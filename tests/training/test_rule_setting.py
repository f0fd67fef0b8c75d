"""One setting for the clip rule: from Python, YAML and a command line; and the names that it replaces."""

import json

import pytest
import torch
from transformers import HfArgumentParser
from trl import TrlParser

from bandpo.core.registry import make_rule
from bandpo.training import BandGRPOConfig
from helpers import QUIET_ON_CPU

QUIET = {key: value for key, value in QUIET_ON_CPU.items() if key != "report_to"}
BAND = {"name": "band", "radius": 0.1, "divergence": "chi2"}


def config(tmp_path, **settings):
    return BandGRPOConfig(output_dir=str(tmp_path), report_to=[], **{**QUIET, **settings})


@pytest.mark.parametrize(
    ("rule", "mapping"),
    [
        (None, {"name": "band"}),
        ({}, {"name": "band"}),
        (BAND, BAND),
        ({"radius": [0.01, 0.1]}, {"name": "band", "radius": [0.01, 0.1]}),
        (json.dumps(BAND), BAND),
        ("{name: band, radius: 3e-4}", {"name": "band", "radius": 3e-4}),
        ("name: clip\nhigh: 0.28\n", {"name": "clip", "high": 0.28}),
        ({"name": "adaptive-band", "reference": 2.0}, {"name": "adaptive-band", "reference": 2.0}),
    ],
)
def test_a_rule_is_a_mapping(tmp_path, rule, mapping):
    args = config(tmp_path, rule=rule)
    assert args.rule == mapping
    assert args.to_dict()["rule"] == mapping
    assert json.loads(args.to_json_string())["rule"] == mapping, "what TensorBoard shows"


def test_a_rule_survives_training_args_bin(tmp_path):
    torch.save(config(tmp_path, rule=BAND), tmp_path / "training_args.bin")
    assert torch.load(tmp_path / "training_args.bin", weights_only=False).rule == BAND


def test_a_rule_on_the_command_line(tmp_path):
    arguments = ["--output_dir", str(tmp_path), "--use_cpu", "--bf16", "false", "--report_to", "none"]
    for parser in (HfArgumentParser(BandGRPOConfig), TrlParser(BandGRPOConfig)):
        (args,) = parser.parse_args_into_dataclasses([*arguments, "--rule", json.dumps(BAND)])
        assert args.rule == BAND
        (args,) = parser.parse_args_into_dataclasses(arguments)
        assert args.rule == {"name": "band"}


def test_a_rule_in_trls_yaml(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(
        f"output_dir: {tmp_path}\nuse_cpu: true\nbf16: false\nreport_to: none\n"
        "rule:\n  name: band\n  radius: 0.1\n  divergence: chi2\n"
    )
    (args,) = TrlParser(BandGRPOConfig).parse_args_and_config(["--config", str(file)])
    assert args.rule == BAND


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("clip", ["rule is 'clip'", "allowed: a mapping"]),
        ([1], ["rule is [1]", "allowed: a mapping"]),
        ("{name: band", ["not valid YAML"]),
        ({"name": "band", "raduis": 1}, ["no option 'raduis'", "did you mean 'radius'"]),
        ({"divergence": object()}, ["cannot be logged", "BandGRPOTrainer(rule=...)"]),
    ],
)
def test_mistakes_are_one_line(tmp_path, rule, words):
    with pytest.raises(ValueError) as caught:
        config(tmp_path, rule=rule)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("old", "mapping"),
    [
        ({"band_radius": 0.1}, {"name": "band", "radius": 0.1}),
        ({"band_radius": [0.01, 0.1], "band_cap": 2.0}, {"name": "band", "radius": [0.01, 0.1], "cap": 2.0}),
        ({"band_divergence": "tv", "band_floor": 0.5}, {"name": "band", "divergence": "tv", "floor": 0.5}),
        ({"clip_rule": "dcpo"}, {"name": "dcpo"}),
        ({"clip_rule": "adaptive-band", "band_radius": 0.1}, {"name": "adaptive-band", "radius": 0.1}),
        ({"clip_rule": "clip"}, {"name": "clip", "low": 0.2, "high": 0.2}),
        (
            {"clip_rule": "clip", "epsilon": 0.1, "epsilon_high": 0.28},
            {"name": "clip", "low": 0.1, "high": 0.28},
        ),
    ],
)
def test_old_names_work_with_a_warning_that_says_what_to_write(tmp_path, old, mapping):
    with pytest.warns(DeprecationWarning, match="use rule=") as caught:
        args = config(tmp_path, **old)
    (warning,) = [one for one in caught if "rule=" in str(one.message)]
    assert f"use rule={mapping!r}" in str(warning.message)
    for name in old:
        assert name in str(warning.message) or name.startswith("epsilon")
    assert args.rule == mapping
    assert make_rule(**args.rule) == make_rule(**mapping)
    assert all(getattr(args, name) is None for name in old if not name.startswith("epsilon"))


def test_the_warning_points_at_the_line_that_makes_the_configuration(tmp_path):
    with pytest.warns(DeprecationWarning, match="band_radius") as caught:
        BandGRPOConfig(output_dir=str(tmp_path), band_radius=0.1, report_to=[], **QUIET)
    assert any(one.filename == __file__ for one in caught)


def test_old_names_beside_the_new_one_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"band_radius=0.1 and rule=.*both given"):
        config(tmp_path, rule={"name": "band"}, band_radius=0.1)
