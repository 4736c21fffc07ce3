"""Models from and to the Hugging Face hub: what `vatt.VATT.from_pretrained`, `save_pretrained` and `push_to_hub` do.

huggingface_hub (extra `hub`) is imported when it is needed: a folder on the disk is read without it.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file

from ..errors import MissingPackage
from ..model.vatt import VATT
from ..runtime.provenance import public
from .loading import load_vatt
from .model_folder import VOCABULARY, write_config

FILES = ("config.json", "model*.safetensors", "model.safetensors.index.json", VOCABULARY)
PIPELINES = {"video": "video-classification", "audio": "audio-classification", "image": "image-classification"}
CARD = """
# {name}

A modality-{kind} VATT (video-audio-text transformer) for the package `vatt`.

```python
import vatt

model = vatt.VATT.from_pretrained("{name}")
to_audio, to_text = model.embed_video(vatt.read_clip("clip.mp4", model.settings).video)
```

`python -m vatt.card` writes a card that tells of training and scores, from the folder of the run.
"""


def load_pretrained(
    name: str | Path,
    *,
    revision: str | None,
    cache_dir: str | Path | None,
    force_download: bool,
    local_files_only: bool,
    token: str | bool | None,
    device: str | torch.device,
    fused: bool | None,
) -> VATT:
    """Return the model in the folder `name`, or of that name on the hub; see `VATT.from_pretrained`."""
    folder = Path(name)
    if not folder.is_dir():
        folder = Path(
            huggingface_hub().snapshot_download(
                str(name),
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
                allow_patterns=list(FILES),
            )
        )
    return load_vatt(folder, device=device, fused=fused)


def save_pretrained(model: VATT, folder: str | Path, name: str | None = None) -> None:
    """Write a model folder with a card, README.md; see `VATT.save_pretrained`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    # What others may see names files, not the folders of this machine in which they lie.
    data = model.settings.data
    data = replace(data, source=public(data.source), vocabulary=public(data.vocabulary))
    write_config(folder, replace(model.settings, data=data), {})
    if model.tokenizer is not None:
        model.tokenizer.save(folder / VOCABULARY)
    text = CARD.format(name=name or folder.absolute().name, kind=model.settings.model.kind)
    (folder / "README.md").write_text(f"{front_matter(None, None)}\n{text}", encoding="utf-8")


def push_to_hub(model: VATT, repo_id: str, *, private: bool | None, token: str | bool | None, message: str) -> str:
    """Upload what `save_pretrained` writes; see `VATT.push_to_hub`."""
    api = huggingface_hub().HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, repo_id)
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message))


def front_matter(task: str | None, licence: str | None) -> str:
    """Return what the hub reads of a card: YAML between two lines of dashes.

    Args:
        task: video, audio or image of a classifier, None for a pre-trained model.
        licence: as the hub names it, None leaves it out.

    Raises:
        MissingPackage: huggingface_hub is not installed.
    """
    data: Any = huggingface_hub().ModelCardData(
        license=licence,
        library_name="vatt",
        pipeline_tag=PIPELINES.get(str(task), "feature-extraction"),
        tags=[task, "vatt"] if task else ["video", "audio", "text", "multimodal", "vatt"],
    )
    return f"---\n{data.to_yaml()}\n---"


def huggingface_hub() -> ModuleType:
    """Return the package. Raises `MissingPackage`, which names the extra, where it is not installed."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingPackage(
            "the Hugging Face hub and model cards need huggingface_hub: pip install -e '.[hub]' in the project's "
            "folder; vatt.load(DIR) works without"
        ) from error
    return huggingface_hub
