"""Which pairs there are (`assets/catalogue.json`), whether they are on this machine, and where.

Public weights lie in the hub's own cache, so that other programs share them; folders anywhere else are opened where they are.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from duogen.models.transformer_files import DENOISERS, read_transformer
from duogen.paths import ASSETS

# torch and the models are imported where they are needed: the download worker and --help do without.

FILE = ASSETS / "catalogue.json"
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
# What a folder's parts need to be opened. Pickles (.bin, .pt, .ckpt) and code (.py) are never fetched.
WANTED_FILES = ("*.json", "*.txt", "*.jinja", "*.model", "*.safetensors", "*.md", "LICENSE*")
UNWANTED_FILES = ("*.fp16.*", "*.fp8*", "*.non_ema.*", "*.onnx*", "assets/*", "*.py")
SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")
ROLES = {"unet": "transformer", "movq": "vae"}  # folders of older pipelines
UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Part:
    """One model of a pair, as its public configuration says.

    Attributes:
        quantisable: parameters that int8 and NF4 shrink; norms, embeddings, output head and vision tower stay in 16 bits.
        width: channels of its tokens. `layers`: its blocks.
        cached: channels of keys (and as many of values) that it keeps for each token and layer.
        pixels: of a picture's side that one token covers, for painters.
        bytes: of weights that came quantised, 0 for others.
    """

    parameters: int
    quantisable: int
    width: int = 0
    layers: int = 0
    cached: int = 0
    pixels: int = 16
    bytes: int = 0

    @staticmethod
    def of(config: dict[str, Any], parameters: int, quantisable: int, compression: int = 8) -> Part:
        """A part with this configuration (a `config.json`); `compression` is the autoencoder's, of a picture's side."""
        text = config.get("text_config") or config
        heads = _number(text, "num_attention_heads", "num_heads", "n_heads")
        width = _number(text, "hidden_size", "d_model", "dim", "n_embd")
        size = _number(text, "attention_head_dim", "head_dim", "d_kv") or (width // heads if heads else 0)
        width = width or heads * size or _number(text, "base_dim", "block_out_channels", "encoder_block_out_channels")
        layers = _number(text, "num_hidden_layers", "n_layers", "depth") or _number(text, "num_layers") + _number(text, "num_single_layers")
        layers = layers or len(text.get("block_out_channels") or ())  # of a UNet
        patch = _number(config, "patch_size", "all_patch_size", last=True)
        packed = compression * patch if isinstance(config.get("patch_size"), list) or patch > 1 else max(16, compression)
        keys = (_number(text, "num_key_value_heads", "n_kv_heads") or heads) * size
        return Part(parameters, quantisable, width, layers, keys, packed)


def _number(config: dict[str, Any], *names: str, last: bool = False) -> int:
    """The first of these that a configuration has, 0 for none; of a list its first or last."""
    found = next((config[name] for name in names if config.get(name)), 0)
    if isinstance(found, (list, tuple)):
        found = found[-1 if last else 0]
    return found if isinstance(found, int) else 0


@dataclass(frozen=True)
class Source:
    """A repository of the hub. `role` says what its folder is: "pair", "painter" (any diffusers pipeline) or "mllm" (an MLLM)."""

    role: str
    repo: str
    revision: str = "main"


@dataclass(frozen=True)
class Preset:
    """A LoRA that makes a pair paint in few steps; `file` of repository `repo`.

    `scheduler` is what it was distilled with, where that differs from the pair's own scheduler.
    """

    id: str
    title: str
    repo: str
    revision: str
    file: str
    bytes: int
    steps: int
    guidance: float
    scheduler: dict[str, Any] = field(default_factory=dict)

    def about(self) -> dict[str, Any]:
        """The fields of `duogen.json` that it changes."""
        return {"steps": self.steps, "guidance": self.guidance}


def preset_of(presets: Sequence[Preset], id: str) -> Preset | None:
    """The chosen one; `None` for "".

    Raises:
        ValueError: there is none of that name.
    """
    chosen = next((each for each in presets if each.id == id), None)
    if id and chosen is None:
        raise ValueError(f"This pair has no preset {id!r}; it has {', '.join(each.id for each in presets) or 'none'}.")
    return chosen


@dataclass(frozen=True)
class Licence:
    """`conditions` is one or two plain sentences, `guardrail` a package that the licence ties use to, both empty where there is none."""

    name: str
    url: str
    conditions: str = ""
    guardrail: str = ""
    gated: bool = False


@dataclass(frozen=True)
class Entry:
    """A pair, or a video model, of the catalogue.

    Attributes:
        parts: what has to fit into memory, by its name in the pipeline; the MLLM is "mllm", or "text_encoder" where both are one.
        about: fields of `duogen.json` that its folder has not.
        download_bytes: of all repositories.
    """

    id: str
    title: str
    summary: str
    paints: str
    sources: tuple[Source, ...]
    parts: dict[str, Part]
    licence: Licence
    about: dict[str, Any] = field(default_factory=dict)
    presets: tuple[Preset, ...] = ()
    download_bytes: int = 0


@cache
def entries() -> dict[str, Entry]:
    """The pairs of the catalogue, by id, in its order."""
    return _read_entries("pairs")


@cache
def video_models() -> dict[str, Entry]:
    """The video models of the catalogue, by id, in its order: they set pictures in motion, and are no pairs."""
    return _read_entries("motion")


def _read_entries(kind: str) -> dict[str, Entry]:
    raw = json.loads(FILE.read_text(encoding="utf-8"))
    parts = {
        name: Part.of(each["config"], each["parameters"], each["quantisable"], each.get("compression", 8))
        for name, each in raw["parts"].items()
    }
    return {each["id"]: _entry(each, parts) for each in raw[kind]}


def _entry(raw: dict[str, Any], parts: dict[str, Part]) -> Entry:
    about = {name: tuple(value) if isinstance(value, list) else value for name, value in raw["about"].items()}
    return Entry(
        **{name: raw[name] for name in ("id", "title", "summary", "paints", "download_bytes")},
        sources=tuple(Source(**each) for each in raw["sources"]),
        parts={role: parts[name] for role, name in raw["parts"].items()},
        licence=Licence(**raw["licence"]),
        about=about,
        presets=tuple(Preset(**each) for each in raw["presets"]),
    )


def bundled_id() -> str:
    """The id of the pair that comes with this program."""
    return next(each.id for each in entries().values() if not each.sources)


def entry(id: str) -> Entry:
    """Raises ValueError, one sentence, when the catalogue has no such pair."""
    if id not in entries():
        raise ValueError(f"The catalogue has no pair {id!r}; it has {', '.join(entries())}.")
    return entries()[id]


def find_download(name: str) -> Entry:
    """What to download: one of the catalogue, or a repository id typed in (as "owner/name" or "owner/name@revision").

    Raises:
        ValueError: it is neither.
    """
    if known := (entries() | video_models()).get(name):
        return known
    repo, _, revision = name.partition("@")
    if not REPOSITORY.fullmatch(repo):
        raise ValueError(f"{name!r} is neither in the catalogue ({', '.join(entries())}) nor a repository such as owner/name.")
    licence = Licence("see the repository", f"https://huggingface.co/{repo}")
    return Entry(name, repo, "A repository of the hub.", "", (Source("painter", repo, revision or "main"),), {}, licence)


def snapshot(source: Source) -> Path | None:
    """The folder of a repository in the hub's cache, or `None` where no file of it is there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source.repo, revision=source.revision, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, FileNotFoundError, ValueError):
        return None


def find_lora(preset: Preset) -> Path | None:
    """The file of a preset's LoRA, if it is on this machine."""
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(preset.repo, preset.file, revision=preset.revision)
    return Path(file) if isinstance(file, str) else None


def lora_file(preset: Preset) -> Path:
    """Raises ValueError when a preset's LoRA is not on this machine."""
    file = find_lora(preset)
    if file is None:
        command = f"python -m duogen pull ID --preset {preset.id}"
        raise ValueError(f"The LoRA for {preset.title} is not on this machine yet; get it with: {command}")
    return file


def list_missing(folder: Path) -> list[str]:
    """Files that a pipeline's or a model's folder lacks, relative to it: configurations, weights and every shard that an index names."""
    index = folder / "model_index.json"
    if not index.is_file():
        return _list_missing_of_part(folder, "config.json", "")
    try:
        parts = json.loads(index.read_text(encoding="utf-8"))
    except ValueError:
        return ["model_index.json"]
    found = []
    for name, value in parts.items():
        if isinstance(value, list) and len(value) == 2 and value[0] and name != "safety_checker":
            kind = "scheduler" if name == "scheduler" else "files" if re.search("token|process|extract", name) else "model"
            needs = {"scheduler": "scheduler_config.json", "files": "", "model": "config.json"}[kind]
            found += _list_missing_of_part(folder, needs, name, kind == "model")
    return found


def _list_missing_of_part(folder: Path, needs: str, name: str, weighs: bool = True) -> list[str]:
    there = folder / name
    if not (there / needs).exists():
        return [str(Path(name, needs))]
    if not weighs:
        return []
    indices, weights = list(there.glob("*.safetensors.index.json")), list(there.glob("*.safetensors"))
    if not indices:
        shards = [file for file in weights if SHARD.search(file.name)]
        if shards and len(shards) == len(weights):  # parts of an index that did not come
            return [str(Path(name, SHARD.sub(".safetensors.index.json", shards[0].name)))]
        return [] if weights else [str(Path(name, "*.safetensors"))]
    try:
        shards = set(json.loads(indices[0].read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError):
        return [str(Path(name, indices[0].name))]
    return sorted(str(Path(name, shard)) for shard in shards if not (there / shard).exists())


def refuse_unsafe(folder: Path) -> None:
    """Raises ValueError when a folder's weights are pickles only, or it wants code of its own to be run."""
    from duogen.models.weight_files import check_file

    index = folder / "model_index.json"
    if index.is_file():
        check_file(index)
        try:
            raw = json.loads(index.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{index} is damaged; get the pair again.") from error
        named = [value for value in raw.values() if isinstance(value, list) and value[0]]
        foreign = [f"{library}.{kind}" for library, kind in named if (folder / f"{library}.py").exists()]
        if foreign or isinstance(raw.get("_class_name"), list):
            code = ", ".join(foreign) or raw["_class_name"][0]
            raise ValueError(f"{folder} brings program code of its own ({code}), which is never run.")
    configs = [file for file in [folder / "config.json", *folder.glob("*/config.json")] if file.is_file()]
    for file in configs:
        if "auto_map" in file.read_text(encoding="utf-8"):
            raise ValueError(f"{file.parent} brings program code of its own (auto_map), which is never run.")
    pickles = [file for file in folder.rglob("*") if file.suffix in UNSAFE]
    if pickles and not any(folder.rglob("*.safetensors")):
        raise ValueError(f"The weights in {folder} are pickles ({pickles[0].name}), which can run code; get them as safetensors.")


def find_folders(pair: Entry) -> dict[str, Path]:
    """Folders of a pair by role, as far as they are on this machine whole."""
    found = {source.role: snapshot(source) for source in pair.sources}
    return {role: folder for role, folder in found.items() if folder is not None and not list_missing(folder)}


def is_installed(pair: Entry) -> bool:
    return not pair.sources or len(find_folders(pair)) == len(pair.sources)


@dataclass(frozen=True)
class Found:
    """A pair on this machine.

    Attributes:
        folder: of the pair, or of the diffusers pipeline that paints.
        mllm: folder of the MLLM, where the pipeline's own text encoder does not talk.
        entry: what the catalogue says of it, `None` for a folder of the user's own.
    """

    folder: Path
    mllm: Path | None = None
    entry: Entry | None = None

    def name(self) -> str:
        """What tells it from every other pair on this machine."""
        return self.entry.id if self.entry else str(self.folder.resolve())

    def is_other_than(self, base: str) -> bool:
        """Whether `base`, by which an adapter names its pair, is surely another pair. A folder may have been moved or renamed since."""
        repo = base.partition("@")[0]
        if self.entry is not None and (base == self.entry.id or repo in {source.repo for source in self.entry.sources}):
            return False
        if base not in entries() and not (REPOSITORY.fullmatch(repo) and not Path(base).expanduser().exists()):
            return False
        where = self.folder.resolve().as_posix()
        return not (where.endswith(f"/{repo}") or repo.replace("/", "--") in where or self.folder.name.startswith(f"{base}-"))

    def parts(self, transformer: Path | None = None) -> dict[str, Part]:
        """What has to fit into memory: counted from the files; where they are not here yet, from the catalogue.

        Args:
            transformer: the user's file that takes the place of the pair's transformer.
        """
        here = (self.folder / "model_index.json").is_file()
        parts = count_parts(self.folder, self.mllm) if here or self.entry is None else dict(self.entry.parts)
        return replace_transformer(parts, transformer) if transformer else parts


def find(pair: str | Path | None = None, mllm: str | Path | None = None, progress: Callable[[str], None] | None = None) -> Found:
    """Where a pair is. The bundled one is assembled when it is first asked for; nothing is downloaded.

    Args:
        pair: an id of the catalogue, a folder, or a repository id that has been downloaded; `None` for the bundled pair.
        mllm: folder or repository id of a Qwen2.5-VL or Qwen3-VL, for a pipeline whose text encoder cannot talk.

    Raises:
        ValueError: one sentence that says what is missing, and the command that gets it.
    """
    from duogen.hub.assemble import BUNDLED, prepare_pair

    name = str(pair) if pair is not None else BUNDLED
    if name == BUNDLED:
        return Found(prepare_pair(None, progress), None, entry(BUNDLED))
    if known := (entries() | video_models()).get(name):
        there = find_folders(known)
        lacking = [source.role for source in known.sources if source.role not in there and not (source.role == "mllm" and mllm)]
        if lacking:
            raise ValueError(f"{known.title} is not on this machine yet; get it with: python -m duogen pull {name}")
        folder = there.get("pair") or there["painter"]
        return Found(folder, _mllm_folder(mllm) if mllm else there.get("mllm"), known)
    folder = locate_folder(name)
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder} is not a pair: a pair is a folder with a model_index.json in it.")
    refuse_unsafe(folder)
    return Found(folder, _mllm_folder(mllm) if mllm else None)


def _mllm_folder(name: str | Path) -> Path:
    from duogen.models.pipeline import is_mllm

    folder = locate_folder(name)
    if not is_mllm(folder):
        raise ValueError(f"{folder} holds no Qwen2.5-VL or Qwen3-VL; name the folder of one with --mllm DIR.")
    refuse_unsafe(folder)
    return folder


def locate_folder(name: str | Path) -> Path:
    """The folder that is named, or that holds a repository of the hub. Raises ValueError: the repository is not on this machine."""
    folder = Path(name).expanduser()
    if folder.exists() or not REPOSITORY.fullmatch(str(name).partition("@")[0]):
        return folder
    repo, _, revision = str(name).partition("@")
    there = snapshot(Source("painter", repo, revision or "main"))
    if there is None or list_missing(there):
        raise ValueError(f"{name} is neither a folder nor a repository on this machine; get it with: python -m duogen pull {name}")
    return there


# Where nobody says what a pipeline paints best with.
DEFAULTS: dict[str, Any] = {"image_size": (1024, 1024), "steps": 28, "guidance": 4.0}


def own_defaults(folder: Path) -> dict[str, Any]:
    """What a folder's pipeline paints best with: by its class, its name and what its DiT is (`defaults` in the catalogue's file).

    Distilled ones want few steps and no guidance, and mostly do not say that they are; where they say it, that counts.
    """
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        kind, distilled = index.get("_class_name"), index.get("is_distilled")
    except (OSError, ValueError, AttributeError):
        return DEFAULTS
    names = [folder.name, str(index.get("_name_or_path", "")), *(part for part in folder.parts if part.startswith("models--"))]
    found = next((each for each in _defaults() if _suits(each, kind, " ".join(names).lower(), folder)), {})
    found = {name: tuple(value) if isinstance(value, list) else value for name, value in found.get("about", {}).items()}
    return DEFAULTS | ({"steps": 4, "guidance": 1.0} if distilled else {}) | found


@cache
def _defaults() -> list[dict[str, Any]]:
    return json.loads(FILE.read_text(encoding="utf-8"))["defaults"]


def _suits(rule: dict[str, Any], kind: Any, names: str, folder: Path) -> bool:
    """Whether a rule of the defaults is about a pipeline: its `name` is in the names, or its `transformer` in the DiT's configuration."""
    if rule["class"] != kind:
        return False
    if "name" not in rule and "transformer" not in rule:
        return True
    if re.search(rule.get("name", "(?!)"), names):
        return True
    try:
        config = json.loads((folder / "transformer" / "config.json").read_text(encoding="utf-8"))
        return "transformer" in rule and all(config.get(name) == value for name, value in rule["transformer"].items())
    except (OSError, ValueError, AttributeError):
        return False


def count_parts(folder: Path, mllm: Path | None = None) -> dict[str, Part]:
    """Parts of a folder, their parameters counted from the headers of its safetensors files."""
    parts, vae = {}, folder / "vae" / "config.json"
    compression = _compression(json.loads(vae.read_text(encoding="utf-8"))) if vae.is_file() else 8
    for there in sorted(folder.iterdir()):
        if (there / "config.json").is_file() and (any(there.glob("*.safetensors")) or there.name in DENOISERS):
            parts[ROLES.get(there.name, there.name)] = _count_part(there, compression)
    if mllm is not None:
        parts["mllm"] = _count_part(mllm)
    return parts


def replace_transformer(parts: dict[str, Part], file: Path) -> dict[str, Part]:
    """The parts of a pair with the transformer of a user's file, counted from its header. Raises ValueError: it is none, one sentence."""
    about = read_transformer(file)
    shrinks = 0 if about.form else sum(prod(each.shape) for name, each in about.weights.items() if _is_quantisable(name, each.shape))
    own = replace(parts.get("transformer", Part(0, 0)), parameters=about.parameters, quantisable=shrinks, bytes=about.bytes)
    return parts | {"transformer": own}


def _is_quantisable(name: str, shape: tuple[int, ...]) -> bool:
    """Whether int8 and NF4 shrink a weight."""
    from duogen.models.placement import KEPT_WHOLE

    return len(shape) == 2 and not re.search("|".join(("embed_tokens", "pos_embed", "lm_head", "visual", "norm", *KEPT_WHOLE)), name)


def _compression(vae: dict[str, Any]) -> int:
    """How many pixels of a picture's side an autoencoder makes one latent."""
    if "LTX" in str(vae.get("_class_name")):
        return vae.get("spatial_compression_ratio") or 32
    if isinstance(vae.get("scale_factor_spatial"), int):
        return vae["scale_factor_spatial"]
    if isinstance(vae.get("patch_size"), int):
        return vae["patch_size"]
    widths = vae.get("encoder_block_out_channels") or ()  # of a deep-compression one
    return 2 ** (len(widths) - 1) if widths else 8


def _count_part(folder: Path, compression: int = 8) -> Part:
    from duogen.models.placement import stored_quantisation
    from duogen.models.weight_files import read_header

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if stored_quantisation(folder):
        return _count_quantised(folder, config, compression)
    total, shrinks, names, widths = 0, 0, [], Counter[int]()
    for file in folder.glob("*.safetensors"):
        header = read_header(file)
        for name, shape in header.shapes.items():
            count = header.count(name)
            total += count
            shrinks += count if _is_quantisable(name, shape) else 0
            names.append(name)
            widths.update(shape if len(shape) == 2 else shape[:1] if len(shape) > 2 else ())
    vae = "Autoencoder" in str(config.get("_class_name"))
    part = Part.of(config, total, 0 if vae else shrinks, compression)
    blocks = {found[0] for name in names if (found := re.match(r".*?(?:blocks?|layers?|h)\.\d+(?=\.)", name))}
    commonest = widths.most_common(1)[0][0] if widths else 0  # where the configuration has names of its own
    return replace(part, width=part.width or commonest, layers=part.layers or len(blocks))


def _count_quantised(folder: Path, config: dict[str, Any], compression: int) -> Part:
    """A part whose weights lie quantised: they take what they take in whatever precision it is opened."""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    about = config["quantization_config"]
    bits = 8 if about.get("load_in_8bit") else about.get("bits") or about.get("w_bit") or 4
    return replace(Part.of(config, int(size * 8 / bits), 0, compression), bytes=size)
