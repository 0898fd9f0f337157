"""Load a published reward by its name, from a folder in its published layout or from the local cache.

What a folder of each holds::

    pickscore, clipscore   config.json and model.safetensors (or pytorch_model.bin), and a tokenizer
    hpsv2, hpsv2.1         HPS_v2_compressed.pt or HPS_v2.1_compressed.pt, and a tokenizer; a config.json of a
                           `CLIPModel` if it is of another size than H/14
    aesthetic              sac+logos+ava1-l14-linearMSE.pth, and a CLIP vision tower as config.json and
                           model.safetensors
    aesthetic-v2.5         aesthetic_predictor_v2_5.pth, and a SigLIP vision tower likewise
    imagereward            ImageReward.pt, and a tokenizer; a config.json of a BLIP model if it is of another size
    videoreward            model_config.json and checkpoint-<step>, see :mod:`nrg_sampler.rewards.named.videoreward`,
                           and prompt_template.py of the VideoAlign repository
    hpsv3                  HPSv3.safetensors, and data_collator_qwen.py of the HPSv3 repository

The tokenizer or the tower may also stand in the folder or cache of the model from which the reward was made; so may
the config and tokenizer of Qwen2-VL, from which the last two were made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nrg_sampler.rewards.named import hpsv3, imagereward, qwen, videoreward
from nrg_sampler.rewards.named.aesthetic import ClipAestheticJudge, ClipHead, SiglipAestheticJudge, SiglipHead
from nrg_sampler.rewards.named.clip import ClipJudge
from nrg_sampler.rewards.named.files import (
    BERT_TOKENIZER,
    CLIP_TOKENIZER,
    Place,
    TorchCache,
    first,
    tokenizer_folder,
)
from nrg_sampler.rewards.named.hpsv2 import H14, from_open_clip
from nrg_sampler.rewards.named.judge import FrameJudge, NamedJudge
from nrg_sampler.rewards.named.table import TABLE, TRANSFORMERS_FILES, Entry, find, unknown
from nrg_sampler.rewards.published import load_state, require_same_keys

TEXT_TOWER = ("text_model.", "text_projection.", "logit_scale", "logit_bias")
POSITIONS = "embeddings.position_ids"  # a counter that older versions of transformers saved


def load_named(
    name: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    download: bool = False,
) -> NamedJudge:
    """Load a published reward as a judge of frames with gradients to the pixels.

    Args:
        name: A name of the table or an alias, ``"pickscore"``; with its folder, ``"pickscore:FOLDER"``; a folder
            alone, if its files tell what it is; or a Hub id of the table.
        base: Folder or Hub id of the tokenizer, of the vision tower of an aesthetic predictor, or of Qwen2-VL. By
            default the reward's own folder, then the local cache of the model that it was made from.
        device: Where to compute.
        dtype: Of the weights; float32 by default, but bfloat16 for those on Qwen2-VL on an accelerator.
        download: Whether files that are on the Hub are fetched where they are not in the local cache.

    Returns:
        Frozen and in evaluation mode. It is called as ``judge(frames, prompts)``, or as ``judge(frames)`` where the
        entry reads no prompts, and returns raw scores ``(B, axes)``. VideoReward also takes the rate, ``fps``.

    Raises:
        ValueError: If there is no such reward, a file is absent or damaged, or a key is missing or too many.
    """
    entry, folder = resolve(os.fspath(name))
    own = [Place(str(folder))] if folder else _published_places(entry, download)
    chosen = [Place(os.fspath(base), download)] if base else []
    judge = BUILDERS[entry.name](_Source(entry, own, [*chosen, *own, Place(entry.base, download)]))
    return judge.to(device).cast(dtype or precision(entry, device))


def precision(entry: Entry, device: str | torch.device) -> torch.dtype:
    """Return in which precision an entry computes on a device where none is asked for."""
    return torch.bfloat16 if entry.half and torch.device(device).type != "cpu" else torch.float32


def resolve(name: str) -> tuple[Entry, Path | None]:
    """Return the entry that is meant, and its folder if one is given.

    Raises:
        ValueError: If none is meant, or several could be.
    """
    kind, colon, rest = name.partition(":")
    if (entry := find(kind)) is not None:
        if not colon:
            return entry, None
        if not rest or not Path(rest).is_dir():
            raise ValueError(f"Expected a folder in {name!r}, but {rest!r} is none; write {kind}:FOLDER.")
        return entry, Path(rest)
    folder = Path(name) if Path(name).is_dir() else None
    meant = recognised(folder) if folder else [entry for entry in TABLE if entry.on_hub and entry.source == name]
    if folder is None and not meant:
        raise unknown(name)
    if len(meant) != 1:
        got = f"could be {' or '.join(entry.name for entry in meant)}" if meant else "has the files of none"
        names = [entry.name for entry in meant or TABLE]
        advice = "say which, as " + " or ".join(f"{one}:{name}" if folder else one for one in names)
        raise ValueError(f"Expected one published reward in {name!r}, but it {got}; {advice}.")
    return meant[0], folder


def recognised(folder: Path) -> list[Entry]:
    """The entries whose own file is in a folder; one that transformers wrote could be of several."""
    own = [entry for entry in TABLE if any((folder / file).is_file() for file in (*entry.files, *entry.beside))]
    special = [entry for entry in own if entry.files != TRANSFORMERS_FILES]
    return special or own


def _published_places(entry: Entry, download: bool) -> list[Place]:
    return [Place(entry.source, download) if entry.on_hub else TorchCache()]


@dataclass(frozen=True)
class _Source:
    """Where an entry's files are looked for.

    Args:
        entry: The entry.
        own: Places of its own weights.
        base: Places of what it shares with the model that it was made from.
    """

    entry: Entry
    own: list[Place]
    base: list[Place]

    def weights(self) -> Path:
        """The file with the reward's own weights."""
        entry = self.entry
        return first(entry.files, self.own, self.own_advice)

    @property
    def own_advice(self) -> str:
        """What to do where a file of the reward's own is absent."""
        entry = self.entry
        files = " ".join((*["config.json"] * (entry.files == TRANSFORMERS_FILES), *entry.beside, entry.files[0]))
        got = f"with `hf download {entry.source} {files}`" if entry.on_hub else f"from github.com/{entry.source}"
        return f"get it {got}, or pass its folder as {entry.name}:FOLDER"

    def question(self, names: Sequence[str], parts: Sequence[str], reason: str) -> str:
        """The wording of what the reward is asked, as :mod:`nrg_sampler.rewards.named.qwen` reads it."""
        assert self.entry.wording is not None
        repository, path = self.entry.wording
        name = Path(path).name
        advice = f"copy {path} of github.com/{repository} beside {(*self.entry.beside, *self.entry.files)[0]}"
        file = first([name], [*self.own, TorchCache()], advice)
        question = qwen.wording(file, names, advice)
        qwen.check_question(question, parts, file, reason)
        return question

    def tokenizer(self, kind: str = "CLIPTokenizer", files: Sequence[Sequence[str]] = CLIP_TOKENIZER) -> Any:
        """The tokenizer of the text tower."""
        import transformers

        folder = tokenizer_folder(self.base, files, self._advice("tokenizer.json"))
        return getattr(transformers, kind).from_pretrained(folder, local_files_only=True)

    def qwen(self, tokens: Sequence[str]) -> tuple[Any, Any]:
        """The config of Qwen2-VL, and its tokenizer with tokens of the reward's own."""
        from transformers import AutoTokenizer

        advice = self._advice("config.json tokenizer.json tokenizer_config.json")
        config = _config("Qwen2VLConfig", first(["config.json"], self.base, advice))
        folder = tokenizer_folder(self.base, CLIP_TOKENIZER, advice)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        tokenizer.add_tokens(list(tokens), special_tokens=True)
        return config, tokenizer

    def tower(self) -> tuple[Path, dict[str, Tensor]]:
        """The folder of the vision tower's config, and its weights without those of a text tower."""
        advice = self._advice("config.json model.safetensors")
        file = first(TRANSFORMERS_FILES, self.base, advice)
        config = first(["config.json"], [Place(str(file.parent)), *self.base], advice)
        return config, {name: value for name, value in _state(file).items() if not name.startswith(TEXT_TOWER)}

    def _advice(self, files: str) -> str:
        return (
            f"get it with `hf download {self.entry.base} {files}`, or pass the folder of the {self.entry.base_part} "
            "as `base`"
        )


def _clip(source: _Source) -> FrameJudge:
    file = source.weights()
    config = _config("CLIPConfig", first(["config.json"], [Place(str(file.parent)), *source.own], "copy it there"))
    model = _empty("CLIPModel", config)
    _fill(model, _state(file), file)
    return ClipJudge(source.entry, model, source.tokenizer())


def _hpsv2(source: _Source) -> FrameJudge:
    from transformers import CLIPConfig

    file = source.weights()
    own_config = file.parent / "config.json"
    config = _config("CLIPConfig", own_config) if own_config.is_file() else CLIPConfig(**H14)
    model = _empty("CLIPModel", config)
    whole: Mapping[str, Any] = load_state(file)
    state = whole.get("state_dict", whole)
    _fill(model, from_open_clip(state, model.state_dict(), file), file)
    return ClipJudge(source.entry, model, source.tokenizer())


def _aesthetic(source: _Source) -> FrameJudge:
    file = source.weights()
    place, state = source.tower()
    config = _config("CLIPVisionConfig", place)
    projection = state.get("visual_projection.weight", torch.empty(config.projection_dim, 0))
    config.projection_dim = len(projection)  # the vision part of a whole config may say another
    model = _empty("CLIPVisionModelWithProjection", config)
    _fill(model, state, place.parent)
    head = ClipHead(config.projection_dim)
    _fill(head, load_state(file), file)
    return ClipAestheticJudge(source.entry, model, head)


def _aesthetic_25(source: _Source) -> FrameJudge:
    file = source.weights()
    place, state = source.tower()
    config = _config("SiglipVisionConfig", place)
    model = _empty("SiglipVisionModel", config)
    if not any(name.startswith("vision_model.") for name in model.state_dict()):  # some versions of transformers
        state = {name.removeprefix("vision_model."): value for name, value in state.items()}
    _fill(model, state, place.parent)
    head = SiglipHead(config.hidden_size)
    _fill(head, load_state(file), file)
    return SiglipAestheticJudge(source.entry, model, head)


def _imagereward(source: _Source) -> FrameJudge:
    from accelerate import init_empty_weights
    from transformers import BlipConfig

    file = source.weights()
    own_config = file.parent / "config.json"
    if own_config.is_file():
        config = _config("BlipConfig", own_config)
    else:
        config = BlipConfig(vision_config=imagereward.VISION, text_config=imagereward.TEXT)
    with init_empty_weights(include_buffers=False):
        model = imagereward.new_model(config.vision_config, config.text_config)
    _fill(model, imagereward.from_published(_state(file), model.state_dict(), file), file)
    return imagereward.ImageRewardJudge(source.entry, model, source.tokenizer("BertTokenizer", BERT_TOKENIZER))


def _videoreward(source: _Source) -> NamedJudge:
    from transformers import Qwen2VLModel

    file = first(source.entry.beside, source.own, source.own_advice)
    settings = videoreward.read_settings(file)
    question = source.question(videoreward.QUESTION, videoreward.PARTS, "quality and motion come before the prompt")
    in_folder = source.own[0].folder is not None
    checkpoint = videoreward.latest_checkpoint(file.parent) if in_folder else source.weights().parent
    named = str(settings["model_config"]["model_name_or_path"])
    beside = Place(str(file.parent / named))
    if beside.folder is not None and source.base[0] in source.own:  # none was chosen
        source = replace(source, base=[beside, *source.base])
    config, tokenizer = source.qwen(videoreward.TOKENS)
    base = next(place for place in source.base if place.file("config.json") is not None)

    def untuned() -> Mapping[str, Tensor]:
        tower = Qwen2VLModel.from_pretrained(base.where, dtype=torch.float32, local_files_only=not base.download)
        state: Mapping[str, Tensor] = tower.state_dict()
        return state

    weights, keys = videoreward.checkpoint_weights(checkpoint, settings, untuned)
    outputs = int(settings["model_config"]["output_dim"])
    whole: Any = qwen.new_whole(config, tokenizer, lambda features: nn.Linear(features, outputs, bias=False))
    _fill(whole, weights, checkpoint)
    return videoreward.VideoRewardJudge(
        source.entry, whole.model, whole.rm_head, tokenizer, settings, question, loaded_keys=keys
    )


def _hpsv3(source: _Source) -> NamedJudge:
    file = source.weights()
    question = source.question(hpsv3.QUESTION, hpsv3.PARTS, "the rating comes after the prompt")
    config, tokenizer = source.qwen(hpsv3.TOKENS)
    whole: Any = qwen.new_whole(config, tokenizer, hpsv3.new_head)
    _fill(whole, hpsv3.weights_of(file), file)
    return hpsv3.HpsV3Judge(source.entry, whole.model, whole.rm_head, tokenizer, question)


BUILDERS: dict[str, Callable[[_Source], NamedJudge]] = {
    "pickscore": _clip,
    "hpsv2": _hpsv2,
    "hpsv2.1": _hpsv2,
    "clipscore": _clip,
    "aesthetic": _aesthetic,
    "aesthetic-v2.5": _aesthetic_25,
    "imagereward": _imagereward,
    "videoreward": _videoreward,
    "hpsv3": _hpsv3,
}


def _config(kind: str, file: Path) -> Any:
    """Read a transformers config, or the vision part of a whole one."""
    import transformers

    wanted = getattr(transformers, kind)
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"))["model_type"]
        whole = wanted.model_type.removesuffix("_vision_model")
        assert found in (wanted.model_type, whole), f"its model_type is {found!r}"
        return wanted.from_pretrained(file.parent, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"Expected the config of a {kind.removesuffix('Config')} model in {file}, but got none ({reason}); "
            "copy it again, or pass the folder of the model that the reward is published with."
        ) from error


def _empty(kind: str, config: Any) -> nn.Module:
    """A model of transformers that has no weights yet."""
    import transformers
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model: nn.Module = getattr(transformers, kind)(config)
    return model


def _state(file: Path) -> dict[str, Tensor]:
    return {name: value for name, value in load_state(file).items() if not name.endswith(POSITIONS)}


def _fill(model: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Give a model all its weights, and no others."""
    require_same_keys(state, model.state_dict(), source)
    model.load_state_dict(dict(state), assign=True)
