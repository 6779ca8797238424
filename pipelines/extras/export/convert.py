"""llama.cpp's converter of transformers folders, run as a child process with a JSON job on standard
input and one line of JSON as the answer.

The converter is installed in a folder of its own, since it brings its own version of `gguf`.
"""

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipelines.errors import WorkError
from pipelines.extras.export.native import LlamaCpp
from pipelines.runs.process import die_with_parent
from pipelines.weights import shortened

FOLDER = Path(sys.prefix) / "converter"
# llama.cpp's rules for splitting text before merges; tokenizer.json has no name for them. The
# converter recognizes published tokenizers by their tokens of one text. For others, these rules are
# tried.
SPLITS = ("gpt-2", "smollm", "llama-bpe", "qwen2", "default")
PROBE = (
    "Hello world! It's 2024-01-15, isn't it?\n\n  def f(x):\n\treturn x ** 2 + 1234567.89  # ok\r\n",
    "서울은 대한민국의 수도입니다. 값은 12,345원이고, 정말 좋아요! ㅋㅋ\n한글과 English를 섞어 씁니다.",
    "naïve café — “quotes” … 日本語 中文 😀 x₂ 10³ DON'T don't WE'LL",
    " leading, trailing and   many    spaces \n \n\n end",
)


class RefusedError(Exception):
    """The model cannot be converted; the message is the reason."""


def convert(folder: Path, file: Path, kind: str, name: str, texts: Sequence[str]) -> None:
    """Write the folder's model as `kind` (f32 or f16), and check that llama.cpp tokenizes every
    text as the tokenizer does.

    Raises:
        RefusedError: the converter does not know the architecture, or llama.cpp tokenizes
            differently.
    """
    import convert_hf_to_gguf as converter  # pyright: ignore[reportMissingImports]
    import transformers
    from conversion import base  # pyright: ignore[reportMissingImports]

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    # Without this patch the converter would load the tokenizer with trust_remote_code.
    transformers.AutoTokenizer.from_pretrained = lambda *_, **__: tokenizer
    architecture = base.get_model_architecture(base.ModelBase.load_hparams(folder, False), base.ModelType.TEXT)
    try:
        converter.get_model_class(architecture)
    except NotImplementedError:
        raise RefusedError(f"llama.cpp's converter does not know {architecture}") from None
    _require_rule(transformers, folder)
    original_split, texts = base.TextModel.get_vocab_base_pre, [*PROBE, *texts]
    base.ModelBase.load_hparams = partial(_with_older_names, base.ModelBase.load_hparams)
    write = partial(_write, converter, base)

    def split(model: Any, _tokenizer: Any) -> str:
        try:
            return original_split(model, tokenizer)
        except NotImplementedError:
            return _find_split(write, tokenizer, texts)

    try:
        write(folder, file, kind, name, split)
    except REFUSALS as error:
        message = str(error).replace(str(folder), "its folder").strip()
        raise RefusedError(
            f"llama.cpp's converter refuses {architecture} ({type(error).__name__}: {message:.300})"
        ) from None
    if not _same_tokens(file, tokenizer, texts):
        raise RefusedError(
            "llama.cpp tokenizes text differently from the tokenizer, so the file would not answer as the model does"
        )


def _require_rule(transformers: Any, folder: Path) -> None:
    """Check that the kinds of the layers follow the architecture's rule.

    llama.cpp derives from the architecture which layers use a sliding window or no positions (in
    Gemma 3 every sixth layer differs). A model with layers removed may break the rule.

    Raises:
        RefusedError: the kinds of the layers do not follow the rule.
    """
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config(decoder=True)
    layer_kinds = shortened.per_layer(config.to_dict())
    if not layer_kinds:
        return
    try:
        defaults = type(config)(
            **{name: value for name, value in config.to_dict().items() if name not in layer_kinds}
        ).to_dict()
    except Exception:
        # A configuration that needs explicit lists has no rule.
        return
    if differing := sorted(name for name, kinds in layer_kinds.items() if defaults.get(name) != kinds):
        raise RefusedError(
            f"its {len(layer_kinds[differing[0]])} layers do not follow the architecture's rule for their kinds "
            f"({', '.join(differing)}), and llama.cpp may assume that rule"
        )


# The converter has no exception class of its own.
REFUSALS = (NotImplementedError, FileNotFoundError, ValueError, LookupError, TypeError, AssertionError)


def _with_older_names(load: Any, folder: Path, is_mistral_format: bool) -> dict[str, Any]:
    """The configuration, with GPT-2's context length also under its older name."""
    hyperparameters = load(folder, is_mistral_format)
    return {
        **({"n_ctx": hyperparameters["n_positions"]} if "n_positions" in hyperparameters else {}),
        **hyperparameters,
    }


def _write(converter: Any, base: Any, folder: Path, file: Path, kind: str, name: str, split: Any) -> None:
    before, base.TextModel.get_vocab_base_pre = base.TextModel.get_vocab_base_pre, split
    sys.argv = ["convert", str(folder), "--outfile", str(file), "--outtype", kind, "--model-name", name]
    try:
        converter.main()
    finally:
        base.TextModel.get_vocab_base_pre = before


def _find_split(write: Any, tokenizer: Any, texts: Sequence[str]) -> str:
    """The split rule that gives the tokenizer's tokens for every text, tested with a minimal
    model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with TemporaryDirectory(prefix="featherweight-vocabulary-") as parent:
        folder, file = Path(parent) / "model", Path(parent) / "model.gguf"
        sizes: dict[str, Any] = {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
        }
        LlamaForCausalLM(LlamaConfig(vocab_size=max(tokenizer.get_vocab().values()) + 1, **sizes)).save_pretrained(
            folder
        )
        tokenizer.save_pretrained(folder)
        for name in SPLITS:
            write(folder, file, "f32", name, lambda _model, _tokenizer, name=name: name)
            if _same_tokens(file, tokenizer, texts):
                return name
    raise RefusedError(
        f"llama.cpp tokenizes text differently from the tokenizer under each of its rules {', '.join(SPLITS)}"
    )


def _same_tokens(file: Path, tokenizer: Any, texts: Sequence[str]) -> bool:
    """Whether llama.cpp gives the tokenizer's tokens.

    A SentencePiece tokenizer puts a space in front of a text. Some omit it if the text starts with
    a space, but llama.cpp never does. Such texts are skipped, since no prompt starts with a space.
    """

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    comparable = [text for text in texts if not (text.startswith(" ") and ids(" a") == ids("a"))]
    try:
        with LlamaCpp(file, context=32, threads=1) as llama:
            return all(llama.tokenize(text) == ids(text) for text in comparable)
    except WorkError as error:
        # The converter may be newer than the installed llama.cpp.
        raise RefusedError(str(error).replace(str(file), "what its converter wrote")) from None


def main() -> None:
    die_with_parent()
    # The converter's `gguf` must take precedence over the installed one.
    sys.path.insert(0, str(FOLDER))
    job = json.load(sys.stdin)
    try:
        convert(Path(job["folder"]), Path(job["file"]), job["kind"], job["name"], job["texts"])
        print(json.dumps({"refused": None}))
    except RefusedError as error:
        print(json.dumps({"refused": str(error)}))


if __name__ == "__main__":
    main()
