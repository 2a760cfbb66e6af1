"""Whole replies from tiny checkpoints of the public pairs' real classes, in their hub layouts, through the one engine."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from duogen.conversation import Conversation, Image, Text
from duogen.engine import Engine
from duogen.events import Done, Failed, ImageDone, ImageStarted, ImageStep, Notice, TextDelta
from duogen.mllm import Context
from duogen.options import ImageOptions, LoadOptions, Options, TextOptions
from duogen.placeholders import Asked
from duogen.placement import Turns, attention, layer_by_layer
from duogen.sequence import Packed
from tests import public
from tests.tiny import END, script

SIDE = 64
REPOSITORIES = {  # of the catalogue
    "cosmos-predict2.5-2b": [("nvidia/Cosmos-Predict2.5-2B", "diffusers/base/post-trained", public.cosmos)],
    "qwen-image-edit-2511": [("Qwen/Qwen-Image-Edit-2511", "main", public.qwen_edit)],
    "flux2-klein-4b": [
        ("black-forest-labs/FLUX.2-klein-4B", "main", public.klein),
        ("Qwen/Qwen3-VL-4B-Instruct", "main", public.qwen3_brain),
    ],
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """A hub cache with all public pairs in it."""
    home = tmp_path_factory.mktemp("hub")
    for repositories in REPOSITORIES.values():
        for repo, revision, write in repositories:
            public.in_cache(home, repo, revision, write)
    return home


@pytest.fixture(autouse=True)
def only_this_cache(cache, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    for name in ("VAE_IMAGE_SIZE", "CONDITION_IMAGE_SIZE"):  # the pipeline scales source pictures to a megapixel
        monkeypatch.setattr(f"diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus.{name}", SIDE * SIDE)


def opened(name: str, precision: str = "fp32", monkeypatch=None, **wishes) -> Engine:
    """A pair by its name in the catalogue, small: what stands there of sizes is the real one's."""
    from duogen import catalogue

    known = catalogue.entries()[name]
    monkeypatch.setitem(catalogue.entries(), name, replace(known, parts={}))  # counted from the tiny files
    load = LoadOptions(device="cpu", precision=precision, painter_precision=precision, picture_side=SIDE, **wishes)
    return Engine.open(name, load=load)


@pytest.fixture(scope="module")
def klein(cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        return opened("flux2-klein-4b", monkeypatch=patch)


def options(**image) -> Options:
    return Options(1, TextOptions(temperature=1.0, top_p=1.0), ImageOptions(**{"steps": 2, "preview_every": 0} | image))


def picture(seed: int = 0) -> PILImage.Image:
    return PILImage.fromarray(np.random.default_rng(seed).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8))


SAID = ("Step 1.", "<picture>", "a red house", "</picture>", " Step 2.", '<picture from="2">a blue door', END)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "nf4"])
@pytest.mark.parametrize("name", REPOSITORIES)
def test_a_whole_reply(name, precision, monkeypatch) -> None:
    engine = opened(name, precision, monkeypatch)
    script(monkeypatch, engine.tokens, *SAID)
    asked = Conversation().say("user", "Like this:", picture())
    events = list(engine.answer(asked, options(guidance=2.0 if name.startswith("cosmos") else 1.0)))
    assert isinstance(events[-1], Done), events[-1]
    kinds = [type(event) for event in events if not isinstance(event, TextDelta)]
    assert kinds == [*[ImageStarted, ImageStep, ImageStep, ImageDone] * 2, Done]
    turn = events[-1].conversation.path()[-1]
    said = [part.text if isinstance(part, Text) else part.alt for part in turn.parts]
    assert said == ["Step 1.", "a red house", " Step 2.", "a blue door"]
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "Step 1. Step 2."
    for image in turn.images():
        assert max(image.picture.size) == SIDE and np.asarray(image.picture).std() > 0
    script(monkeypatch, engine.tokens, "Well.", END)
    again = list(engine.answer(events[-1].conversation.say("user", "And now?"), options()))[-1]
    assert again.stats.encoded_tokens < again.stats.prompt_tokens / 4, "the second turn reads what is new only"


@pytest.mark.parametrize("name", REPOSITORIES)
def test_pictures_of_another_size_and_closer_to_those_before(name, monkeypatch) -> None:
    engine, asked = opened(name, "fp32", monkeypatch), Conversation().say("user", "Like this:", picture())
    for side, guidance in ((2 * SIDE, 1.0), (0, 2.0)):
        script(monkeypatch, engine.tokens, *SAID)
        done = list(engine.answer(asked, options(side=side, picture_guidance=guidance)))[-1]
        assert [max(image.picture.size) for image in done.conversation.path()[-1].images()] == [side or SIDE] * 2
        asked = done.conversation.say("user", "Again.")


def test_the_same_seed_paints_the_same_picture(klein, monkeypatch) -> None:
    made = []
    for _ in range(2):
        script(monkeypatch, klein.tokens, *SAID)
        done = list(klein.answer(Conversation().say("user", "Draw"), options()))[-1]
        made.append([image.picture.tobytes() for image in done.conversation.path()[-1].images()])
    assert made[0] == made[1] and made[0][0] != made[0][1]


def test_what_was_named_comes_first_then_the_latest(klein) -> None:
    frames = klein.memory.frames.empty()
    for seed in range(6):
        klein.painter.remember(frames, picture(seed), None, 0)
    order = [frames.past.index(each) for each in klein.painter.sources(frames, Asked("x", (2, 9, 1)))]
    assert order == [1, 0, 5, 4]
    assert klein.painter.sources(frames, Asked("x"), picture(7))[1:] == frames.past[:2:-1]


def test_outside_a_mask_nothing_changes(klein, monkeypatch) -> None:
    mask = PILImage.new("L", (SIDE, SIDE))
    mask.paste(255, (0, 0, 20, 20))
    script(monkeypatch, klein.tokens, *SAID[1:4], END)
    done = list(klein.answer(Conversation().say("user", "Change it", Image(picture(), mask=mask)), options()))[-1]
    before, after = np.asarray(picture()), np.asarray(done.conversation.path()[-1].images()[0].picture)
    assert (before[20:] == after[20:]).all() and (before[:20, :20] != after[:20, :20]).any()


def test_stop_ends_a_picture_and_frees_the_thread(klein, monkeypatch) -> None:
    script(monkeypatch, klein.tokens, *SAID)
    stop, seen = threading.Event(), []
    for event in klein.answer(Conversation().say("user", "Draw"), options(steps=9), stop):
        seen.append(event)
        if isinstance(event, ImageStep) and event.step == 2:
            stop.set()
    assert isinstance(seen[-1], Done) and seen[-1].stats.stopped == "user" and seen[-2].step == 2
    time.sleep(0.05)
    assert not [thread for thread in threading.enumerate() if thread.name == "pipeline"]


def test_a_failing_pipeline_keeps_what_is_finished(klein, monkeypatch) -> None:
    script(monkeypatch, klein.tokens, *SAID)
    plain, calls = klein.pair.pipe.encode_prompt, []

    def encode_prompt(**named):
        calls.append(named)
        if len(calls) == 2:
            raise RuntimeError("broken")
        return plain(**named)

    monkeypatch.setattr(klein.pair.pipe, "encode_prompt", encode_prompt)
    failed = list(klein.answer(Conversation().say("user", "Draw"), options()))[-1]
    assert isinstance(failed, Failed) and "broken" in failed.message
    assert len(failed.conversation.path()[-1].images()) == 1


def test_out_of_memory_steps_down_once_and_goes_on(klein, monkeypatch) -> None:
    plain, calls = type(klein.painter).paint, []

    def paint(self, *given):
        calls.append(given)
        if len(calls) in (2, 4, 5):
            raise torch.OutOfMemoryError("no memory")
        yield from plain(self, *given)

    monkeypatch.setattr(type(klein.painter), "paint", paint)
    monkeypatch.setattr(klein.pair.pipe.vae, "use_tiling", False)
    script(monkeypatch, klein.tokens, *SAID)
    events = list(klein.answer(Conversation().say("user", "Draw"), options()))
    assert isinstance(events[-1], Done) and len(events[-1].conversation.path()[-1].images()) == 2
    told = [event.message for event in events if isinstance(event, Notice)]
    assert told == ["Memory ran out, so pictures are made in tiles from now on."]
    assert klein.pair.pipe.vae.use_tiling
    script(monkeypatch, klein.tokens, *SAID)
    failed = list(klein.answer(Conversation().say("user", "Draw"), options()))[-1]
    assert isinstance(failed, Failed) and "Memory ran out" in failed.message


def test_a_picture_painted_anew_gets_words_of_its_own(klein, monkeypatch) -> None:
    script(monkeypatch, klein.tokens, "a green", " boat", "</picture>")
    before = Conversation().say("user", "Draw").say("assistant", "A boat.")
    *_, done = klein.painting(before, options())
    assert done.image.alt == "a green boat"


def test_an_untuned_answer_read_again_shows_how_it_was_asked_for(klein) -> None:
    said = Conversation().say("user", "Draw").say("assistant", "Here:", Image(picture(), alt="a boat"))
    packed = klein.tokens.pack(said.path())
    assert "Here:<picture>a boat</picture><|vision_start|>" in klein.pair.tokenizer.decode(packed.ids)


def test_qwen3_vl_reads_as_its_own_forward(klein) -> None:
    """DeepStack features and interleaved positions, with and without the cache."""
    packed = Packed()
    packed.add(klein.tokens.text("Look: "), False)
    klein.tokens.add_image(packed, Image(picture(3)), False)
    packed.add(klein.tokens.text("a house"), False)
    pixels, grids = klein.tokens.pixels([slot.image for slot in packed.slots])
    ids = torch.tensor([packed.ids])
    model = klein.mllm.model
    kinds = (ids == model.config.image_token_id).int()
    with torch.no_grad():
        plain = model(input_ids=ids, pixel_values=pixels, image_grid_thw=grids, mm_token_type_ids=kinds).logits[0, -1]
    context = Context()
    klein.mllm.prefill(context, packed.between(0, packed.slots[0].end))
    klein.mllm.prefill(context, packed)
    said = [index for index in range(len(plain)) if index not in klein.mllm.unsaid]
    assert torch.allclose(context.logits[said], plain[said].float(), atol=1e-4)


def test_a_real_language_model_as_the_brain(klein) -> None:
    """SmolLM2 as it comes, which knows nothing of pictures: whatever it says, the answer is words and pictures without markup."""
    from duogen.assemble import base_model, processor

    model, tokenizer = base_model(torch.bfloat16)
    pair = replace(klein.pair, text_encoder=model.eval(), tokenizer=tokenizer, image_processor=processor(), turns=Turns(model, [], "cpu"))
    engine = Engine(pair)
    said = Options(3, TextOptions(temperature=0.0, max_tokens=24), ImageOptions(steps=1, max_images=2, preview_every=0))
    asked = Conversation().say("user", "Show me a red house. Write <picture>a red house</picture> and nothing else.")
    done = list(engine.answer(asked, said))[-1]
    assert isinstance(done, Done), done
    turn = done.conversation.path()[-1]
    assert turn.parts and "<pict" not in turn.text() and "</pict" not in turn.text()


def test_a_painter_without_a_talker_is_told_what_to_do(cache, tmp_path) -> None:
    from duogen.catalogue import Source, snapshot

    painter = snapshot(Source("painter", "black-forest-labs/FLUX.2-klein-4B"))
    with pytest.raises(ValueError, match="--brain"):
        Engine.open(painter, load=LoadOptions(device="cpu", picture_side=SIDE))
    with pytest.raises(ValueError, match="no Qwen2.5-VL or Qwen3-VL"):
        Engine.open(painter, brain=tmp_path, load=LoadOptions(device="cpu", picture_side=SIDE))


def test_steps_that_change_little_are_skipped_from_nine_on(monkeypatch) -> None:
    engine = opened("qwen-image-edit-2511", monkeypatch=monkeypatch)
    monkeypatch.setattr("duogen.placement.CACHE_THRESHOLD", 1e3)  # random weights change much
    model, counts = engine.pair.pipe.transformer, []
    last = model.transformer_blocks[-1]
    for steps in (9, 4):
        calls: list = []
        watch = last.attn.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        script(monkeypatch, engine.tokens, *SAID[1:4], END)
        done = list(engine.answer(Conversation().say("user", "Draw", picture()), options(steps=steps, guidance=1.0)))[-1]
        assert isinstance(done, Done), done
        counts.append((model.is_cache_enabled, len(calls)))
        watch.remove()
    assert counts[0][0] and counts[0][1] < 9 and counts[1] == (False, 4)


def test_taking_turns_moves_one_out_before_the_other_comes_in() -> None:
    class Part:
        def __init__(self, name: str, where: str) -> None:
            self.name, self.device = name, torch.device(where)

        def to(self, where: str) -> None:
            moves.append((self.name, where))
            self.device = torch.device(where)

    moves: list = []
    turns = Turns(Part("brain", "cuda"), [Part("dit", "cpu"), Part("vae", "cpu")], "cuda", "cpu")
    turns.talk()
    assert moves == []
    turns.paint()
    assert moves == [("brain", "cpu"), ("dit", "cuda"), ("vae", "cuda")]
    turns.talk()
    assert moves[3:] == [("dit", "cpu"), ("vae", "cpu"), ("brain", "cuda")]


def test_layer_by_layer_paints_the_same(monkeypatch) -> None:
    pictures = []
    for offloaded in (False, True):
        engine = opened("cosmos-predict2.5-2b", monkeypatch=monkeypatch)
        if offloaded:
            layer_by_layer(engine.pair.transformer, "cpu")
        script(monkeypatch, engine.tokens, *SAID)
        done = list(engine.answer(Conversation().say("user", "Draw"), options()))[-1]
        pictures.append([image.picture.tobytes() for image in done.conversation.path()[-1].images()])
    assert pictures[0] == pictures[1]


def test_the_attention_kernel(monkeypatch) -> None:
    assert attention("cpu") == "native" and attention("cpu", "flash") == "flash"
    with pytest.raises(ValueError, match="choose auto or one of"):
        attention("cpu", "sideways")
    for capability, works, name in [((8, 9), True, "xformers"), ((8, 9), False, "native"), ((12, 0), True, "native")]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda value=capability: value)
        monkeypatch.setattr("duogen.placement.xformers_works", lambda device, value=works: value)
        assert attention("cuda") == name
