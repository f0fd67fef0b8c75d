"""The model of a run directory."""

import pytest

from bandpo.runs.locate import locate_model


def test_models_of_a_run(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints" / "checkpoint-4").mkdir(parents=True)
    (run / "checkpoints" / "checkpoint-12").mkdir()
    assert locate_model(str(run), None) == str(run), "not a run directory: as it is"
    with pytest.raises(ValueError, match="not a run directory"):
        locate_model(str(run), 4)
    (run / "config.yaml").write_text("")
    assert locate_model(str(run), 4) == str(run / "checkpoints" / "checkpoint-4")
    with pytest.raises(ValueError, match=r"checkpoint-5; its checkpoints: 4, 12"):
        locate_model(str(run), 5)
    with pytest.raises(ValueError, match=r"has no model; its checkpoints: 4, 12"):
        locate_model(str(run), None)
    (run / "model").mkdir()
    assert locate_model(str(run), None) == str(run / "model")
