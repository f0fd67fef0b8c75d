"""Short names of data sets and checksums of weights."""

import pytest

from bandpo.evaluation.identity import fingerprint, names_apart


def test_names_of_data_sets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert names_apart(["gsm8k", "d/test.jsonl", "v1.5"]) == ["gsm8k", "test", "v1.5"]
    assert names_apart(["a/x/test.jsonl", "b/x/test.json", "c/y/test"]) == ["a-x-test", "b-x-test", "y-test"]
    assert names_apart(["gsm8k", "openai/gsm8k"]) == ["gsm8k", "openai-gsm8k"]
    with pytest.raises(ValueError, match="given twice"):
        names_apart(["a.jsonl", str(tmp_path / "a.jsonl")])


def test_other_weights_have_another_fingerprint(tmp_path):
    model, copy = tmp_path / "model", tmp_path / "copy"
    for folder in (model, copy):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights")
    assert fingerprint(copy) == fingerprint(model)
    seen = {fingerprint(copy), fingerprint(tmp_path / "nowhere")}
    large = copy / "more.safetensors"
    for data in (bytes(3 << 20), bytes((3 << 20) - 1) + b"x", b"x" + bytes((3 << 20) - 1), bytes(4 << 20)):
        large.write_bytes(data)
        seen.add(fingerprint(copy))
    assert len(seen) == 6
    assert None in seen
    assert fingerprint(large) is not None
