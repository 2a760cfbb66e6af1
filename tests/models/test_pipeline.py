"""Opening pair folders: both layouts, all precisions, and one sentence for every way in which a folder can be broken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from duogen.conversation import Conversation
from duogen.engine import Engine
from duogen.events import Done
from duogen.models.pipeline import About, open_pair
from duogen.options import ImageOptions, Options, TextOptions
from tests.support.tiny import BOV, END, script, tiny_pair

ENCODER, PAINTER = "text_encoder/model.safetensors", "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tiny_pair(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def folder(whole, tmp_path):
    """A copy to break."""
    return Path(shutil.copytree(whole, tmp_path / "pair"))


def test_what_is_saved_opens_with_the_same_weights(whole, tmp_path):
    pair = open_pair(whole, "cpu", "fp32")
    pair.save_pretrained(tmp_path)
    again = open_pair(tmp_path, "cpu", "fp32")
    assert again.about == pair.about and again.about.layers == (1, 3)
    assert type(again.vae).__name__ == "PatchVAE"
    for part in ("text_encoder", "transformer", "vae"):
        before, after = getattr(pair, part).state_dict(), getattr(again, part).state_dict()
        assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_the_plain_layout_of_cosmos_opens_with_defaults(tmp_path):
    folder = tiny_pair(tmp_path / "Cosmos", cosmos_layout=True)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "Cosmos2_5_PredictBasePipeline" and not (folder / "duogen.json").exists()
    index["safety_checker"] = ["cosmos_guardrail", "CosmosSafetyChecker"]  # a package that is not here, and not needed
    (folder / "model_index.json").write_text(json.dumps(index))
    pair = open_pair(folder, "cpu", "fp32")
    assert pair.about == About(title="Cosmos", tuned=False, films=True, max_tokens=2048) and pair.about.frame_attention == "bidirectional"
    vision = pair.text_encoder.config.vision_config
    assert (pair.image_processor.patch_size, pair.image_processor.merge_size) == (vision.patch_size, vision.spatial_merge_size)
    assert type(pair.vae).__name__ == "AutoencoderKLWan" and type(pair.scheduler).__name__ == "UniPCMultistepScheduler"


@pytest.mark.parametrize(("precision", "linear"), [("nf4", "Linear4bit"), ("int8", "Linear8bitLt")])
def test_a_quantised_talker_answers(whole, monkeypatch, precision, linear):
    pair = open_pair(whole, "cpu", precision)

    def kinds(module):
        return {type(each).__name__ for each in module.modules() if "Linear" in type(each).__name__}

    assert kinds(pair.text_encoder.model.language_model) == {linear}
    assert kinds(pair.text_encoder.model.visual) == {"Linear"} == kinds(pair.text_encoder.lm_head)
    engine = Engine(pair)
    script(monkeypatch, engine.tokens, "One", BOV, "two", END)
    *_, done = engine.answer(Conversation().say("user", "Draw."), Options(1, TextOptions(), ImageOptions(steps=2)))
    assert isinstance(done, Done) and done.stats.images == 1


def test_the_talker_is_bf16_unless_asked_otherwise(whole):
    pair = open_pair(whole, "cpu")
    assert pair.text_encoder.dtype == torch.bfloat16
    assert pair.transformer.dtype == pair.vae.dtype == torch.float32  # on a CPU


def cut(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) * 2 // 3])


def drop_a_weight(file: Path) -> None:
    weights = load_file(file)
    weights.pop(sorted(weights)[0])
    save_file(weights, file, metadata={"format": "pt"})


BREAKS = {
    "weights of the talker cut short": (lambda f: cut(f / ENCODER), "model.safetensors cannot be opened: it is cut short"),
    "weights of the painter cut short": (lambda f: cut(f / PAINTER), "cannot be opened"),
    "a weight of the talker gone": (lambda f: drop_a_weight(f / ENCODER), "text_encoder lacks 1 of its weights"),
    "a weight of the painter gone": (lambda f: drop_a_weight(f / PAINTER), "transformer lacks 1 of its weights"),
    "no weights": (lambda f: (f / PAINTER).unlink(), "no file named"),
    "no talker": (lambda f: shutil.rmtree(f / "text_encoder"), "lacks text_encoder"),
    "no configuration": (lambda f: (f / "text_encoder/config.json").unlink(), "lacks text_encoder/config.json"),
    "no painter": (lambda f: shutil.rmtree(f / "transformer"), "lacks transformer"),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), "lacks scheduler"),
    "no preparation of pictures": (lambda f: shutil.rmtree(f / "image_processor"), "lacks image_processor"),
    "tokenizer cut short": (lambda f: cut(f / "tokenizer/tokenizer.json"), "cannot be opened"),
    "index cut short": (lambda f: cut(f / "model_index.json"), "model_index.json cannot be opened"),
    "no index": (lambda f: (f / "model_index.json").unlink(), "is not a pair"),
    "duogen.json cut short": (lambda f: cut(f / "duogen.json"), "duogen.json cannot be opened"),
    "impossible value": (lambda f: (f / "duogen.json").write_text('{"frame_attention": "sideways"}'), "'sideways'"),
}


@pytest.mark.parametrize("how", BREAKS)
def test_a_broken_pair_gets_one_sentence(folder, how):
    change, words = BREAKS[how]
    change(folder)
    with pytest.raises(ValueError) as caught:
        open_pair(folder, "cpu", "fp32")
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("device", "precision", "words"),
    [("gpu", "bf16", "no device called"), ("cpu", "fp8", "no precision"), ("cuda", "bf16", "no CUDA device")],
)
def test_impossible_wishes_get_one_sentence(whole, device, precision, words):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match=words):
        open_pair(whole, device, precision)


def leave_pointer(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n")


def claim_long_header(file: Path) -> None:
    file.write_bytes((2**60).to_bytes(8, "little") + file.read_bytes()[8:])


def keep_as_pickle(file: Path) -> None:
    file.rename(file.with_suffix(".bin"))


def keep_index_alone(file: Path) -> None:
    shard = file.name.replace(".safetensors", "-00001-of-00002.safetensors")
    file.with_name(f"{file.name}.index.json").write_text(json.dumps({"weight_map": {"a": shard, "b": shard.replace("1-of", "2-of")}}))
    file.unlink()


FILES = {
    "the pointer of git-lfs": (leave_pointer, "{file} cannot be opened: git-lfs left a pointer in its place"),
    "a header of an exabyte": (claim_long_header, "{file} cannot be opened: it is cut short or damaged; get it again."),
    "nothing in it": (lambda file: file.write_bytes(b""), "{file} cannot be opened: it is empty; get it again."),
    "half of it": (cut, "{file} cannot be opened: it is cut short or damaged; get it again."),
    "a header that is no JSON": (lambda file: file.write_bytes(b"\x04" + bytes(7) + b"abcd"), "{file} cannot be opened: it is cut short"),
    "deep lists": (lambda f: f.write_bytes((10**5).to_bytes(8, "little") + b"[" * 10**5), "{file} cannot be opened: it is cut short"),
    "a pickle in its place": (keep_as_pickle, "has its weights as diffusion_pytorch_model.bin, which can run code; get them"),
    "its shards lost": (keep_index_alone, "lacks transformer/diffusion_pytorch_model-00001-of-00002.safetensors and 1 more"),
}


@pytest.mark.parametrize("how", FILES)
def test_a_weight_file_that_cannot_be_opened_is_named(folder, how):
    change, words = FILES[how]
    change(folder / PAINTER)
    with pytest.raises(ValueError) as caught:
        Engine.open(folder, "cpu", "fp32")
    assert words.format(file=folder / PAINTER) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ("text_encoder/config.json", "tokenizer/tokenizer.json", "vae/config.json"))
@pytest.mark.parametrize("change", (leave_pointer, lambda file: file.write_bytes(b""), cut), ids=("pointer", "empty", "cut"))
def test_a_configuration_that_cannot_be_opened_is_named(folder, name, change):
    change(folder / name)
    with pytest.raises(ValueError, match=f"{name} cannot be opened") as caught:
        Engine.open(folder, "cpu", "fp32")
    assert "\n" not in str(caught.value)
