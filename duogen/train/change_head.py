"""The change head: fitted to the MLLM's states before pictures that go on from the one before, in the sketchbook's edits and guides.

N places, W words, D channels of the states, K channels of their projection, H and W pixels.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from PIL import Image as PILImage

from duogen.models.sequence import Tokens
from duogen.nn.change_head import KINDS, ChangeHead, Transforms, list_bins, read_motions
from duogen.nn.vae import PatchVAE, pixel_weights
from duogen.painters.masks import to_pixels
from duogen.precision import resolve_precision
from duogen.provenance import encode_picture
from duogen.sketchbook.change import loose_parts, remove_part, remove_thing
from duogen.sketchbook.draw import draw
from duogen.sketchbook.scene import CANVAS, COLOURS, Scene, Thing, extent
from duogen.sketchbook.tasks import Dialogue, draw_turns, sample
from duogen.train.curriculum import choose_core_kinds, draft_dialogue, sample_move
from duogen.train.objective import FlowObjective
from duogen.train.scene_head import label_scenes, read_packed_states
from duogen.train.settings import CurriculumSettings
from duogen.train.states import Projection

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLForConditionalGeneration

SHARES = {"edit": 0.75, "guide": 0.25}
DRAFTED, TRANSFORMED = 0.3, 0.5  # of the dialogues: others, and those of one transform
TRANSFORMS = ("move", "resize", "remove", "recolour")  # one as often as the other
TESTED = 0.05  # of the dialogues, which the head is not fitted to
PROJECTED, FITTED_TO = 384, 100  # channels of the projection, and dialogues that it is fitted to
BATCH, LEARNING_RATE = 48, 1.5e-3
KNOWN_RATE = 1 / 3  # of the learning rate: for weights that an earlier head had
PIXELS, PIXEL_BATCH, SOURCE_BATCH = 24, 6, 16  # channels of what is read from pictures; how many of a batch are looked at, and for a source
NOISE, NOISY = 0.06, 0.6  # strongest noise on the pictures that are looked at, and the share of them that has some: a painter's are blotchy
SAME = 4  # of 255: up to this difference a pixel stays
BLUR = 1.0  # bins: how soft the labels of a motion are
CLOSE, ALIKE = (0.1, 0.015, 0.015), 0.1  # doublings, widths and heights: a motion so near is right; a colour so near, of -1..1, is
SHADES, PARTLY = 16, 0.05  # of 255: shades of one colour, as in a sky; the share of a colour's pixels from which all of them change


@dataclass(frozen=True)
class LabelledTransform:
    """What happens to pixels of a picture.

    Attributes:
        kind: of `KINDS`, but "paint".
        ground: as a PNG file, the picture before with other pixels wherever it is transformed: without the thing that moves or goes, or
            with the part in its new colour.
        motion: (doublings, right, down) of what moves, as `read_motions` tells them.
        colour: of what is recoloured, each of three in -1..1.
    """

    kind: str
    ground: bytes
    motion: tuple[float, float, float] = (0.0, 0.0, 0.0)
    colour: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def mark_source(self, before: torch.Tensor) -> torch.Tensor:
        """The pixels that are transformed, of the picture `before`, [3, H, W] in -1..1; boolean [H, W]."""
        return _find_difference(before, _read_picture(self.ground))


def label_transform(before: Scene, after: Scene) -> LabelledTransform | None:
    """The transform between two scenes; `None` where it is none, or more than one."""
    if before.background != after.background:
        return None
    ground = encode_picture(draw(after), "PNG", None)
    if len(after.things) == len(before.things) - 1:
        gone = any(remove_thing(before, number) == after for number in range(len(before.things)))
        return LabelledTransform("remove", ground) if gone else None
    things = list(zip(before.things, after.things, strict=False))
    changed = [number for number, (one, other) in enumerate(things) if one != other]
    if len(before.things) != len(after.things) or len(changed) != 1:
        return None
    old, new = things[changed[0]]
    if any(remove_part(old, index) == new for index in loose_parts(old)):
        return LabelledTransform("remove", ground)
    if replace(old, scale=new.scale, side=new.side, level=new.level) == new:
        return _label_motion(before, changed[0], new)
    colour = _find_colour(old, new)
    return LabelledTransform("recolour", ground, colour=colour) if colour else None


def _find_colour(old: Thing, new: Thing) -> tuple[float, float, float] | None:
    """The new colour of a part, where it is all that differs between two things."""
    differ = [index for index, (one, other) in enumerate(zip(old.parts, new.parts, strict=False)) if one != other]
    if len(differ) != 1 or replace(old, parts=new.parts) != new or len(old.parts) != len(new.parts):
        return None
    one, other = old.parts[differ[0]], new.parts[differ[0]]
    red, green, blue = (value / 127.5 - 1 for value in COLOURS[other.colour])
    return (red, green, blue) if replace(one, colour=other.colour) == other else None


def _label_motion(before: Scene, number: int, new: Thing) -> LabelledTransform | None:
    """The motion of thing `number`, which becomes `new`; `None` where nothing of it is to be seen."""
    old, picture, ground = before.things[number], draw(before), draw(remove_thing(before, number))
    marks = _find_difference(*to_pixels([picture, ground])).nonzero().float()
    if not len(marks):
        return None
    one, other = extent(old), extent(new)
    scale = (other[2] - other[0]) / (one[2] - one[0])
    right, down = (((marks[:, 1 - axis].mean() + 0.5 - one[axis]) * (scale - 1) + other[axis] - one[axis]) / CANVAS for axis in (0, 1))
    return LabelledTransform("move", encode_picture(ground, "PNG", None), (math.log2(scale), float(right), float(down)))


@dataclass(frozen=True)
class Change:
    """A picture that goes on from the one before.

    Attributes:
        places: [N, D] or [N, K], the MLLM's states of the picture before.
        words: [W, D] or [W, K], its states of the words since, the last one first.
        moved: boolean [N], the places that differ.
        pictures: the picture before and the one after as PNG files; `None` for a head that looks at no pixels.
        transform: what happens to pixels of it, if that is all that changes.
    """

    places: torch.Tensor
    words: torch.Tensor
    moved: torch.Tensor
    pictures: tuple[bytes, bytes] | None = None
    transform: LabelledTransform | None = None

    def read_pixels(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The picture before, [3, H, W] in -1..1, and its pixels that are painted anew, boolean [H, W]; the rest of them stays."""
        assert self.pictures is not None  # of all changes of a set, or of none
        before, after = map(_read_picture, self.pictures)
        return before, widen_change(before, _find_difference(before, after), round(len(self.moved) ** 0.5))


def _read_picture(file: bytes) -> torch.Tensor:
    """[3, H, W] in -1..1."""
    return to_pixels([PILImage.open(io.BytesIO(file)).convert("RGB")])[0]


def _find_difference(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one - other).abs().amax(0) > SAME / 127.5


def widen_change(before: torch.Tensor, moved: torch.Tensor, places: int) -> torch.Tensor:
    """Mark all pixels of a colour in a place where some of them differ, boolean [H, W].

    Where something new comes to lie, its outline is not to be seen in the picture before: all of the ground under it is painted anew there.
    A part that is gone or has another colour is marked as it is.

    Args:
        before: the picture before, [3, H, W] in -1..1.
        moved: its pixels that differ afterwards, boolean [H, W].
        places: rows, and columns, of the places.
    """
    row, column = (torch.arange(side) * places // side for side in moved.shape)
    red, green, blue = ((before + 1) * 127.5 / SHADES).round().long()
    code = (((row[:, None] * places + column) * 256 + red) * 256 + green) * 256 + blue
    _, region = code.flatten().unique(return_inverse=True)
    share = torch.bincount(region, moved.flatten().float()) / torch.bincount(region)
    return moved | (share > PARTLY)[region].view_as(moved)


@dataclass(frozen=True)
class ChangeReader:
    """Makes examples: the frozen MLLM, and the autoencoder whose latents say what differs. Of the MLLM no more than `layers` are needed."""

    mllm: Qwen2_5_VLForConditionalGeneration
    tokens: Tokens
    layers: list[int]
    vae: PatchVAE

    @torch.no_grad()
    def read(self, dialogue: Dialogue) -> list[Change]:
        """The changes of a dialogue. Pictures of another grid of tokens than of latents are left out."""
        packed = self.tokens.pack(draw_turns(dialogue))
        shown = list(zip(packed.slots, dialogue.scenes(), label_scenes(dialogue), strict=True))
        pairs = [(old, new, label_transform(before, after)) for (old, before, _), (new, after, begins) in pairwise(shown) if not begins]
        if not pairs:
            return []
        states = read_packed_states(self.mllm, self.tokens, self.layers, packed)
        used = {id(each): each for old, new, _ in pairs for each in (old, new)}  # each once: a picture ends one change and begins the next
        changes, encoded = [], {key: encode_picture(each.image.picture, "PNG", None) for key, each in used.items()}
        for old, new, transform in pairs:
            moved = self._find_moved(to_pixels([old.image.picture, new.image.picture]))
            if moved.shape == old.grid:
                first = old.end - 1 - moved.numel()  # EOV ends it
                pictures = encoded[id(old)], encoded[id(new)]
                changes.append(Change(states[first : old.end - 1], states[old.end : new.bov].flip(0), moved.flatten(), pictures, transform))
        return changes

    def _find_moved(self, pixels: torch.Tensor) -> torch.Tensor:
        """Boolean [h, w], where the second of two pictures [2, 3, H, W] differs."""
        config = self.vae.config
        mean, std = (torch.tensor(each).view(1, -1, 1, 1) for each in (config.latents_mean, config.latents_std))
        latents = (self.vae.encode(pixels[:, :, None]).latent_dist.mode().float()[:, :, 0] - mean) / std
        return FlowObjective(pixel_weights(config.latents_std)).find_moved(latents[1:], latents[:1])[0]


def sample_changes(rng: random.Random, settings: CurriculumSettings) -> Dialogue:
    """Sample edits or a guide, a share of them drawn in drafts, or a brought picture with one transform."""
    if rng.random() < TRANSFORMED:
        return sample_move(rng, settings, (rng.choice(TRANSFORMS),))
    dialogue = sample(rng.choices(list(SHARES), list(SHARES.values()))[0], rng, kinds=choose_core_kinds(rng, settings))
    return draft_dialogue(dialogue) if rng.random() < DRAFTED else dialogue


def fit_change_head(
    reader: ChangeReader,
    settings: CurriculumSettings,
    dialogues: int,
    steps: int,
    seed: int,
    log: Callable[[str], None] = print,
    old: ChangeHead | None = None,
) -> tuple[ChangeHead, dict[str, float]]:
    """Fit a head to sampled dialogues.

    Args:
        old: an earlier head, which need not know pixels; its weights are what the fit begins with.

    Returns:
        The head, and its figures on the dialogues that it was not fitted to, as `measure_head` gives them.

    Raises:
        ValueError: the MLLM sees pictures in another grid than the autoencoder.
    """
    rng = random.Random(seed)
    whole = [reader.read(sample_changes(rng, settings)) for _ in range(min(FITTED_TO, dialogues))]
    if not any(whole):
        raise ValueError("The MLLM sees pictures in another grid than the autoencoder, so no change head can be fitted.")
    channels = min(PROJECTED, whole[0][0].places.shape[1])
    projection = Projection.fit((torch.cat([each.places, each.words]) for made in whole for each in made), channels)
    found = [_project(made, projection) for made in whole]
    del whole
    for number in range(len(found), dialogues):
        found.append(_project(reader.read(sample_changes(rng, settings)), projection))
        if number % 100 == 99:
            log(f"{number + 1} of {dialogues} dialogues read")
    fitted = len(found) - max(1, round(TESTED * len(found)))
    examples, tested = ([change for made in part for change in made] for part in (found[:fitted], found[fitted:]))
    head = train_head(examples, steps, seed, log, narrow_head(old, projection) if old else None)
    return fold_head(head, projection), measure_head(head, tested)


def _project(changes: list[Change], projection: Projection) -> list[Change]:
    return [replace(each, places=projection.project(each.places).half(), words=projection.project(each.words).half()) for each in changes]


def train_head(
    changes: list[Change], steps: int, seed: int, log: Callable[[str], None] = print, old: ChangeHead | None = None
) -> ChangeHead:
    """Train a head on projected states; it knows pixels if the changes have pictures. The learning rate falls over the last half.

    `old` is an earlier head that reads projected states; weights that it has are what the training begins with.
    """
    torch.manual_seed(seed)
    rng, side = random.Random(seed), round(len(changes[0].moved) ** 0.5)
    head = ChangeHead(
        changes[0].places.shape[1],
        (side, side),
        pixels=PIXELS if changes[0].pictures else 0,
        transforms=any(each.transform for each in changes),
    )
    shapes = {name: weight.shape for name, weight in head.state_dict().items()}
    known = {name: weight for name, weight in old.state_dict().items() if shapes.get(name) == weight.shape} if old else {}
    head.load_state_dict(known, strict=False)
    groups = [
        {"params": [weight for name, weight in head.named_parameters() if (name in known) is same], "lr": LEARNING_RATE * rate}
        for same, rate in ((True, KNOWN_RATE), (False, 1.0))
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 50, 2 * (1 - step / max(1, steps))))
    for step in range(steps):
        batch = rng.choices(changes, k=BATCH)
        places, words, lengths, moved = collate(batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=resolve_precision("auto", "cpu") == "bf16"):
            read = head.read(places, words, lengths)
            loss = F.binary_cross_entropy_with_logits(head.mark_places(read), moved)
            if head.config.pixels:
                loss = loss + _pixel_loss(head, read[:PIXEL_BATCH], batch[:PIXEL_BATCH])
            if head.config.transforms:
                loss = loss + _transform_loss(head, read, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if step % 200 == 199:
            log(f"step {step + 1} of {steps}: loss {loss.item():.4f}")
    return head.eval().requires_grad_(False)


def _pixel_loss(head: ChangeHead, read: torch.Tensor, changes: Sequence[Change]) -> torch.Tensor:
    pictures, moved = collate_pixels(changes)
    return F.binary_cross_entropy_with_logits(head.mark_pixels(read, _add_noise(pictures)), moved.float())


def _add_noise(pictures: torch.Tensor) -> torch.Tensor:
    strength = NOISE * torch.rand(len(pictures), 1, 1, 1) * (torch.rand(len(pictures), 1, 1, 1) < NOISY)
    return pictures + strength * torch.randn_like(pictures)


def _transform_loss(head: ChangeHead, read: torch.Tensor, changes: Sequence[Change]) -> torch.Tensor:
    """Of which transform every picture's is and how it is, and for some of them which pixels it is of."""
    found, labels = head.find_transforms(read), [each.transform for each in changes]
    kinds = torch.tensor([_kind_of(each) for each in labels])
    loss = F.cross_entropy(found.kinds.float(), kinds)
    for kind, measure in (("move", _motion_loss), ("recolour", _colour_loss)):
        at = (kinds == KINDS.index(kind)).nonzero().flatten()
        if len(at):
            loss = loss + measure(found, at, [each for each in labels if each and each.kind == kind])
    at = kinds.nonzero().flatten()[:SOURCE_BATCH]
    if not len(at):
        return loss
    pictures, marks = collate_sources([changes[int(number)] for number in at])
    return loss + F.binary_cross_entropy_with_logits(head.mark_source(read[at], _add_noise(pictures)), marks.float())


def _kind_of(label: LabelledTransform | None) -> int:
    return KINDS.index(label.kind) if label else 0


def _motion_loss(found: Transforms, at: torch.Tensor, labels: Sequence[LabelledTransform]) -> torch.Tensor:
    """Of the motions at the numbers `at` of a batch: their bins, with soft labels."""
    bins, targets = list_bins(), torch.tensor([each.motion for each in labels])
    wide = bins[:, 1:2] - bins[:, :1]
    soft = (-((bins - targets[..., None]) / (BLUR * wide)).square() / 2).softmax(-1)
    return F.cross_entropy(found.motions[at].float().flatten(0, 1), soft.flatten(0, 1))


def _colour_loss(found: Transforms, at: torch.Tensor, labels: Sequence[LabelledTransform]) -> torch.Tensor:
    return F.l1_loss(found.colours[at].float(), torch.tensor([each.colour for each in labels]))


def collate(changes: list[Change]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A batch: places [B, N, K], words [B, W, K] with padding, their lengths [B], and what moved as numbers [B, N]."""
    words = torch.nn.utils.rnn.pad_sequence([each.words.float() for each in changes], batch_first=True)
    lengths = torch.tensor([len(each.words) for each in changes])
    return torch.stack([each.places.float() for each in changes]), words, lengths, torch.stack([each.moved.float() for each in changes])


def collate_pixels(changes: Sequence[Change]) -> tuple[torch.Tensor, torch.Tensor]:
    """The pictures before, [B, 3, H, W] in -1..1, and their pixels that differ afterwards, boolean [B, H, W]."""
    pictures, moved = zip(*(each.read_pixels() for each in changes), strict=True)
    return torch.stack(pictures), torch.stack(moved)


def collate_sources(changes: Sequence[Change]) -> tuple[torch.Tensor, torch.Tensor]:
    """Of changes with a transform the pictures before, [B, 3, H, W] in -1..1, and the pixels that it is of, boolean [B, H, W]."""
    pictures = [_read_picture(each.pictures[0]) for each in changes if each.pictures]
    marks = [each.transform.mark_source(picture) for each, picture in zip(changes, pictures, strict=True) if each.transform]
    return torch.stack(pictures), torch.stack(marks)


@torch.no_grad()
def measure_head(head: ChangeHead, changes: list[Change]) -> dict[str, float]:
    """Shares of what the head tells right: of the places ("places"), of the pictures all places ("pictures"), and where it knows pixels, of
    those that change ("changed pixels") and of those that stay ("kept pixels"); where it knows transforms, `_measure_transforms` too."""
    right, pixels, transforms = [], [], []
    for start in range(0, len(changes), BATCH):
        batch = changes[start : start + BATCH]
        places, words, lengths, moved = collate(batch)
        read = head.read(places, words, lengths)
        right.append((head.mark_places(read) > 0) == (moved > 0.5))
        if head.config.pixels:
            pictures, moved = collate_pixels(batch)
            pixels.append(torch.stack([head.mark_pixels(read, pictures) > 0, moved]))
        transforms += _measure_transforms(head, read, batch) if head.config.transforms else []
    marks = torch.cat(right)
    figures = {"places": float(marks.float().mean()), "pictures": float(marks.all(1).float().mean())}
    if pixels:
        told, moved = torch.cat(pixels, 1)
        figures |= {"changed pixels": float(told[moved].float().mean()), "kept pixels": float((~told)[~moved].float().mean())}
    for name in ("kinds", "motions", "colours", "sources"):
        found = [each[name] for each in transforms if name in each]
        figures |= {name: sum(found) / len(found)} if found else {}
    return figures


def _measure_transforms(head: ChangeHead, read: torch.Tensor, changes: Sequence[Change]) -> list[dict[str, float]]:
    """For each picture whether the head tells its transform's kind right ("kinds"), its motion to `CLOSE` ("motions"), its colour to
    `ALIKE` ("colours"), and what its pixels and the marked ones have in common, by all of both ("sources")."""
    found, made = head.find_transforms(read), []
    kinds, motions = found.kinds.argmax(1), read_motions(found.motions)
    for number, change in enumerate(changes):
        label = change.transform
        made.append({"kinds": float(kinds[number] == _kind_of(label))})
        if not label:
            continue
        pictures, source = collate_sources([change])
        marks = head.mark_source(read[number : number + 1], pictures) > 0
        made[-1]["sources"] = float((marks & source).sum() / (marks | source).sum())
        if label.kind == "move":
            made[-1]["motions"] = float(((motions[number] - torch.tensor(label.motion)).abs() < torch.tensor(CLOSE)).all())
        elif label.kind == "recolour":
            made[-1]["colours"] = float((found.colours[number] - torch.tensor(label.colour)).abs().max() < ALIKE)
    return made


@torch.no_grad()
def narrow_head(head: ChangeHead, projection: Projection) -> ChangeHead:
    """A head that reads projected states, with the same result but for what the projection leaves out."""
    weights = {name: value.float() for name, value in head.state_dict().items()}
    for name in ("from_places", "from_words"):
        weights[f"{name}.bias"] = weights[f"{name}.bias"] + weights[f"{name}.weight"] @ projection.mean
        weights[f"{name}.weight"] = weights[f"{name}.weight"] @ projection.axes.T / projection.axes[0].square().sum()
    return _make_alike(head, projection.axes.shape[0], weights)


@torch.no_grad()
def fold_head(head: ChangeHead, projection: Projection) -> ChangeHead:
    """A head that reads whole states, with the same result."""
    weights = head.state_dict()
    for name in ("from_places", "from_words"):
        weights[f"{name}.weight"] = weights[f"{name}.weight"] @ projection.axes
        weights[f"{name}.bias"] = weights[f"{name}.bias"] - weights[f"{name}.weight"] @ projection.mean
    return _make_alike(head, projection.axes.shape[1], weights)


def _make_alike(head: ChangeHead, channels: int, weights: dict[str, torch.Tensor]) -> ChangeHead:
    config = head.config
    sizes = config.words, config.width, config.layers, config.heads
    made = ChangeHead(channels, tuple(config.places), *sizes, pixels=config.pixels, transforms=config.transforms)
    made.load_state_dict(weights)
    return made.eval().requires_grad_(False)
