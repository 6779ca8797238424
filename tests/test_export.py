"""Results taken out: GGUF files that llama.cpp answers from as transformers does, merged weights, and what bit widths cost."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.errors import UnavailableError
from pipelines.export.gguf_file import write_gguf
from pipelines.export.native import LlamaCpp
from pipelines.train.loading import load_tokenizer
from tests.tiny import save_tiny, tiny_model

TEXTS = ("What is a lake?", "서울은 어디에 있나요? 1,234원", "def f(x):\n    return x + 1")


@pytest.mark.parametrize("architecture", ["llama", "llama-tied", "qwen2", "gpt2"])
def test_llama_cpp_reads_tokens_and_answers_as_transformers_does(architecture: str, tmp_path: Path) -> None:
    folder, model = save_tiny(tmp_path / "tiny", architecture), tiny_model(architecture)
    tokenizer = load_tokenizer(folder)
    written = write_gguf(folder, tmp_path / "tiny.gguf", "F32", name="tiny")
    assert set(written.types) == {"F32"}
    with LlamaCpp(tmp_path / "tiny.gguf", context=256, threads=1) as llama:
        for text in TEXTS:
            asked = tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
            )
            assert llama.tokenize(tokenizer.decode(asked)) == asked
            ids = torch.tensor([asked])
            with torch.no_grad():
                logs = model(ids).logits[0].log_softmax(-1)[range(len(asked) - 1), asked[1:]].numpy()
                said = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
            np.testing.assert_allclose(llama.log_probabilities(asked), logs, atol=2e-3)  # its cache is F16
            assert llama.greedy(asked, limit=8, stops=[0]) == said[0, len(asked) :].tolist()


def test_rows_that_no_k_type_fits_get_llama_cpps_narrower_ones_and_it_is_said(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny")
    written = write_gguf(folder, tmp_path / "tiny.gguf", "Q4_K_M", name="tiny")
    assert written.types["Q5_0"] > written.types["Q8_0"] > 0 and "Q4_K" not in written.types
    assert "no multiple of 256" in (written.in_words("Q4_K_M") or "")
    with LlamaCpp(tmp_path / "tiny.gguf", context=64, threads=1) as llama:
        assert np.isfinite(llama.log_probabilities([5, 6, 7])).all()


def test_what_cannot_be_written_is_refused_by_name_and_leaves_no_file(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny", "opt")
    with pytest.raises(UnavailableError, match=r"'opt'.*llama, qwen2, gpt2.*--merge"):
        write_gguf(folder, tmp_path / "tiny.gguf", "F16", name="tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
