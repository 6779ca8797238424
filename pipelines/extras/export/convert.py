"""llama.cpp's own converter of transformers folders, run as a child, which reads what to write as JSON and answers in a
line of JSON. It is a package that lies apart from the others, since it brings a `gguf` of its own.
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
# How llama.cpp splits text before it merges; no tokenizer.json holds the name. The converter knows the published tokenizers by
# their tokens of one text; for others these are tried.
SPLITS = ("gpt-2", "smollm", "llama-bpe", "qwen2", "default")
PROBE = (
    "Hello world! It's 2024-01-15, isn't it?\n\n  def f(x):\n\treturn x ** 2 + 1234567.89  # ok\r\n",
    "서울은 대한민국의 수도입니다. 값은 12,345원이고, 정말 좋아요! ㅋㅋ\n한글과 English를 섞어 씁니다.",
    "naïve café — “quotes” … 日本語 中文 😀 x₂ 10³ DON'T don't WE'LL",
    " leading, trailing and   many    spaces \n \n\n end",
)


class Refused(Exception):
    """The model cannot be written, and why."""


def convert(folder: Path, file: Path, kind: str, name: str, texts: Sequence[str]) -> None:
    """Write the folder's model as `kind` (f32 or f16), and see that llama.cpp makes the tokenizer's tokens of every text.

    Raises:
        Refused: the converter does not know the architecture, or llama.cpp would make other tokens.
    """
    import convert_hf_to_gguf as converter  # pyright: ignore[reportMissingImports]
    import transformers
    from conversion import base  # pyright: ignore[reportMissingImports]

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    transformers.AutoTokenizer.from_pretrained = lambda *_, **__: tokenizer  # the converter would trust its code
    architecture = base.get_model_architecture(base.ModelBase.load_hparams(folder, False), base.ModelType.TEXT)
    try:
        converter.get_model_class(architecture)
    except NotImplementedError:
        raise Refused(f"llama.cpp's converter does not know {architecture}") from None
    _require_rule(transformers, folder)
    known, texts = base.TextModel.get_vocab_base_pre, [*PROBE, *texts]
    base.ModelBase.load_hparams = partial(_with_older_names, base.ModelBase.load_hparams)
    write = partial(_write, converter, base)

    def split(model: Any, _tokenizer: Any) -> str:
        try:
            return known(model, tokenizer)
        except NotImplementedError:
            return _find_split(write, tokenizer, texts)

    try:
        write(folder, file, kind, name, split)
    except REFUSALS as error:
        said = str(error).replace(str(folder), "its folder").strip()
        raise Refused(f"llama.cpp's converter refuses {architecture} ({type(error).__name__}: {said:.300})") from None
    if not _reads_alike(file, tokenizer, texts):
        raise Refused(
            "llama.cpp makes other tokens of text than the tokenizer, so the file would not answer as the model does"
        )


def _require_rule(transformers: Any, folder: Path) -> None:
    """llama.cpp knows by the architecture which layers see a window alone, or no positions (Gemma 3: every sixth is another). Of a
    model that lost some of its layers others may be.

    Raises:
        Refused: the layers' kinds do not follow the architecture's own rule.
    """
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config(decoder=True)
    said = shortened.per_layer(config.to_dict())
    if not said:
        return
    try:
        ruled = type(config)(**{name: value for name, value in config.to_dict().items() if name not in said}).to_dict()
    except Exception:  # a configuration that needs its lists: there is no rule
        return
    if other := sorted(name for name, kinds in said.items() if ruled.get(name) != kinds):
        raise Refused(
            f"of its {len(said[other[0]])} layers others than in a whole model are of another kind ({', '.join(other)}), "
            "and llama.cpp may take the architecture's own rule for granted"
        )


REFUSALS = (
    NotImplementedError,
    FileNotFoundError,
    ValueError,
    LookupError,
    TypeError,
    AssertionError,
)  # it has no kind of its own


def _with_older_names(load: Any, folder: Path, is_mistral_format: bool) -> dict[str, Any]:
    """The configuration, with GPT-2's context by the name that transformers no longer writes."""
    found = load(folder, is_mistral_format)
    return {**({"n_ctx": found["n_positions"]} if "n_positions" in found else {}), **found}


def _write(converter: Any, base: Any, folder: Path, file: Path, kind: str, name: str, split: Any) -> None:
    before, base.TextModel.get_vocab_base_pre = base.TextModel.get_vocab_base_pre, split
    sys.argv = ["convert", str(folder), "--outfile", str(file), "--outtype", kind, "--model-name", name]
    try:
        converter.main()
    finally:
        base.TextModel.get_vocab_base_pre = before


def _find_split(write: Any, tokenizer: Any, texts: Sequence[str]) -> str:
    """The name under which llama.cpp makes the tokenizer's tokens of every text, tried on the smallest model that it loads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with TemporaryDirectory(prefix="featherweight-vocabulary-") as made:
        folder, file = Path(made) / "model", Path(made) / "model.gguf"
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
            if _reads_alike(file, tokenizer, texts):
                return name
    raise Refused(
        f"llama.cpp makes other tokens of text than the tokenizer under each of its rules {', '.join(SPLITS)}"
    )


def _reads_alike(file: Path, tokenizer: Any, texts: Sequence[str]) -> bool:
    """Whether llama.cpp makes the tokenizer's tokens. A SentencePiece tokenizer puts a space in front, and some put none where one
    is, while llama.cpp always does: such texts say nothing, as no prompt begins with a space."""

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    told = [text for text in texts if not (text.startswith(" ") and ids(" a") == ids("a"))]
    try:
        with LlamaCpp(file, context=32, threads=1) as llama:
            return all(llama.tokenize(text) == ids(text) for text in told)
    except WorkError as error:  # the converter may know more than the llama.cpp that is installed
        raise Refused(str(error).replace(str(file), "what its converter wrote")) from None


def main() -> None:
    die_with_parent()
    sys.path.insert(0, str(FOLDER))  # in front of the `gguf` that is installed
    asked = json.load(sys.stdin)
    try:
        convert(Path(asked["folder"]), Path(asked["file"]), asked["kind"], asked["name"], asked["texts"])
        print(json.dumps({"refused": None}))
    except Refused as error:
        print(json.dumps({"refused": str(error)}))


if __name__ == "__main__":
    main()
