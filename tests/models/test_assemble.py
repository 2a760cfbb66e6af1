"""The base language model and its assembly into a pair folder."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

from duogen.hub import assemble
from duogen.models.mllm import append_patch_positions

pytestmark = [pytest.mark.slow, pytest.mark.skipif(assemble.find_base() is None, reason=f"needs: {assemble.BASE_COMMAND}")]
MARKS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]


@pytest.fixture(scope="module")
def read():
    """The base as read from its file, once for all tests."""
    return assemble.read_base(assemble.find_base())


@pytest.fixture
def quick(monkeypatch, read):
    """Lets `base_model` start from what was read already."""
    weights, tokenizer = read
    monkeypatch.setattr(assemble, "read_base", lambda _: ({name: weight.clone() for name, weight in weights.items()}, tokenizer))


def trained_parts(folder: Path, model) -> Path:
    """A tiny stand-in for `weights/duogen-sketch`: a random adapter, new rows for the vision tokens, a changed vision tower."""
    torch.manual_seed(1)
    encoder = folder / "text_encoder"
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=r".*language_model.*q_proj", trainable_token_indices={"embed_tokens": [3, 4, 5, 6]})
    adapted = get_peft_model(model, lora)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if weight.requires_grad:
                weight.copy_(torch.randn_like(weight) * (1.0 if "token_adapter" in name else 0.1))
    adapted.save_pretrained(encoder, save_embedding_layers=False)
    vision = adapted.base_model.model.model.visual.state_dict()
    save_file({name: weight.float() + 0.5 for name, weight in vision.items()}, encoder / "vision.safetensors")
    (folder / "model_index.json").write_text("{}")
    (folder / "duogen.json").write_text('{"bov": "<|vision_start|>"}')
    (folder / "transformer").mkdir()
    (folder / "transformer" / "config.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory, read):
    weights = {name: weight.clone() for name, weight in read[0].items()}
    return trained_parts(tmp_path_factory.mktemp("trained"), assemble.as_qwen(weights))


def test_logits_equal_the_llamas_and_make_sense(read):
    weights, tokenizer = read
    config = LlamaConfig(**assemble.BASE_SIZES, rms_norm_eps=1e-5, rope_parameters={"rope_theta": 100000.0}, tie_word_embeddings=True)
    llama = LlamaForCausalLM.from_pretrained(None, config=config, state_dict=weights, dtype=torch.float32)
    ids = torch.tensor([tokenizer.encode("The capital of France is the city of").ids])
    with torch.no_grad():
        expected = llama(ids).logits
        got = assemble.as_qwen(weights)(input_ids=ids).logits
    assert (got - expected).abs().max() < 1e-4
    # Rows of queries or keys in the wrong order would still agree above, but talk nonsense.
    assert tokenizer.decode([got[0, -1].argmax().item()]) == " Paris"


def test_base_model_is_the_same_every_time_and_sees_pictures(quick):
    (one, tokenizer), (two, _) = assemble.base_model(), assemble.base_model()
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, two.state_dict()[name]), name
    rows = one.get_input_embeddings().weight[3:7]
    assert torch.linalg.matrix_rank(rows) == 4
    seen = assemble.processor()(images=[Image.new("RGB", (256, 256), "red")], return_tensors="pt")
    ids = torch.tensor([[1, *tokenizer.encode("look "), 3, *[5] * 64, 4, 2]])
    kinds = (ids == one.config.image_token_id).int()
    with torch.no_grad():
        pixels = append_patch_positions(seen["pixel_values"], seen["image_grid_thw"], one.config.vision_config)
        out = one(input_ids=ids, mm_token_type_ids=kinds, **{**seen, "pixel_values": pixels})
    assert out.logits.shape == (1, ids.shape[1], 49152) and out.logits.isfinite().all()
    positions, _ = one.model.get_rope_index(ids, kinds, image_grid_thw=seen["image_grid_thw"])
    start = ids[0].tolist().index(5)
    assert positions[:, 0, start + 64].tolist() == [start + 8] * 3, "a picture of 8 x 8 tokens takes eight positions"


def test_tokens(read, tmp_path):
    assemble.rename_tokens(read[1]).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 49152
    assert tokenizer.convert_ids_to_tokens([1, 2, 3, 4, 5, 6]) == ["<|im_start|>", "<|im_end|>", *MARKS]
    assert tokenizer.pad_token_id != tokenizer.eos_token_id == 2
    said = "<|im_start|>user\nIt's 3.5 cm, zeichne ein Häuschen 🙂\n\n  x = 12<|vision_start|><|image_pad|><|vision_end|><|im_end|>\n"
    ids = tokenizer.encode(said)
    assert tokenizer.decode(ids) == said
    assert [i for i in ids if i < 17] == [1, 3, 5, 4, 2]
    assert not set(tokenizer.encode("".join(MARKS), split_special_tokens=True)) & set(range(17))


def test_file_that_is_not_the_base_gets_one_sentence(tmp_path, monkeypatch):
    base = assemble.find_base().read_bytes()
    broken = {"missing": None, "cut short": base[:5000], "not a GGUF": b"PK" + base[2:], "another model": base[:-1] + bytes([base[-1] ^ 1])}
    for said, content in broken.items():
        file = tmp_path / f"{said}.bin"
        if content is not None:
            file.write_bytes(content)
        monkeypatch.setattr(assemble, "find_base", lambda file=file: file)
        with pytest.raises(ValueError, match=f"{said}.*{assemble.BASE_COMMAND}"):
            assemble.base_model()


def test_without_the_package_the_hub_is_asked(tmp_path, monkeypatch, read):
    import huggingface_hub

    def unreachable(*_, **__):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(assemble, "BASE_PACKAGE", "no-such-package-anywhere")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(ValueError, match=f"^[^.]*{assemble.BASE_COMMAND}"):
        assemble.base_model()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    save_file({name: weight.bfloat16() for name, weight in read[0].items()}, tmp_path / "model.safetensors")
    read[1].save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps(assemble.BASE_SIZES))
    model, tokenizer = assemble.base_model()
    assert torch.equal(model.model.language_model.norm.weight, read[0]["model.norm.weight"].bfloat16().float())
    assert tokenizer.encode("<|vision_start|>") == [3]

    (tmp_path / "config.json").write_text(json.dumps(assemble.BASE_SIZES | {"hidden_size": 960}))
    with pytest.raises(ValueError, match="another model"):
        assemble.base_model()


def test_assembled_pair_holds_base_and_trained_parts(quick, parts, tmp_path, read):
    said: list[str] = []
    (tmp_path / "duogen-sketch-0123456789ab").mkdir()
    (tmp_path / "duogen-sketch-mine").mkdir()
    folder = assemble.assemble_bundled(parts, tmp_path, said.append)
    assert said and {path.name for path in tmp_path.iterdir()} - {".lock"} == {folder.name, "duogen-sketch-mine"}
    expected = {"model_index.json", "duogen.json", "transformer", "text_encoder", "tokenizer", "image_processor"}
    assert {path.name for path in folder.iterdir()} == expected
    assert Qwen2VLImageProcessorPil.from_pretrained(folder / "image_processor").patch_size == 32
    assert AutoTokenizer.from_pretrained(folder / "tokenizer").convert_tokens_to_ids("<|vision_start|>") == 3

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "text_encoder")
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    model.float()

    adapter = load_file(parts / "text_encoder" / "adapter_model.safetensors")
    prefix = "base_model.model.model.language_model.layers.7.self_attn.q_proj"
    change = 2.0 * adapter[f"{prefix}.lora_B.weight"] @ adapter[f"{prefix}.lora_A.weight"]
    merged = read[0]["model.layers.7.self_attn.q_proj.weight"] + change
    assert torch.equal(model.model.language_model.layers[7].self_attn.q_proj.weight, merged.bfloat16().float())
    rows = next(weight for name, weight in adapter.items() if "embed_tokens" in name)
    assert torch.equal(model.get_input_embeddings().weight[3:7], rows.bfloat16().float())
    assert model.lm_head.weight is model.get_input_embeddings().weight
    vision = load_file(parts / "text_encoder" / "vision.safetensors")
    assert torch.equal(model.model.visual.merger.ln_q.weight, vision["merger.ln_q.weight"].bfloat16().float())

    said.clear()
    assert assemble.assemble_bundled(parts, tmp_path, said.append) == folder and not said


def test_killed_assembly_leaves_nothing_half_made(quick, parts, tmp_path, monkeypatch):
    stale = tmp_path / "duogen-sketch-0123456789ab.part"
    stale.mkdir()
    (stale / "model_index.json").write_text("{}")

    def killed():
        assert [path.name.endswith(".part") for path in tmp_path.iterdir() if path.is_dir()] == [True]
        raise KeyboardInterrupt

    monkeypatch.setattr(assemble, "processor", killed)
    with pytest.raises(KeyboardInterrupt):
        assemble.assemble_bundled(parts, tmp_path, lambda _: None)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_two_at_once_assemble_once(parts, tmp_path, monkeypatch):
    made: list[Path] = []

    def slow(source, target, progress):
        made.append(target)
        time.sleep(0.3)
        target.mkdir()

    monkeypatch.setattr(assemble, "assemble", slow)
    both = [threading.Thread(target=assemble.assemble_bundled, args=(parts, tmp_path, lambda _: None)) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(made) == 1 and made[0].is_dir()


def test_damaged_trained_parts_get_one_sentence(parts, tmp_path, read):
    from shutil import copytree

    model = assemble.as_qwen({name: weight.clone() for name, weight in read[0].items()})
    for name in ("vision.safetensors", "adapter_model.safetensors", "adapter_config.json"):
        folder = copytree(parts / "text_encoder", tmp_path / name)
        (folder / name).write_bytes((folder / name).read_bytes()[:300])
        with pytest.raises(ValueError, match=r"damaged or incomplete .*: check the repository out again\.$"):
            assemble.add_trained_weights(model, folder)
    delete_everything = copytree(parts / "text_encoder", tmp_path / "empty")
    save_file({}, delete_everything / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="damaged or incomplete"):
        assemble.add_trained_weights(model, delete_everything)


def test_pair_folders(parts, tmp_path, monkeypatch):
    assert assemble.prepare_pair(parts) == parts
    with pytest.raises(ValueError, match="is not a pair"):
        assemble.prepare_pair(tmp_path / "nowhere")
    monkeypatch.setenv("DUOGEN_HOME", str(tmp_path / "home"))
    assert assemble.data_home() == tmp_path / "home"
    monkeypatch.setattr(assemble, "trained_folder", lambda: tmp_path / "no weights")
    with pytest.raises(ValueError, match="trained weights are missing"):
        assemble.prepare_pair()
    monkeypatch.setattr(assemble, "trained_folder", lambda: parts)
    (tmp_path / "home").write_text("a file, not a folder")
    with pytest.raises(ValueError, match="set DUOGEN_HOME"):
        assemble.prepare_pair("duogen-sketch")
