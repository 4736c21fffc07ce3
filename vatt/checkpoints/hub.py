"""`vatt.VATT`: the model with `from_pretrained`, `save_pretrained` and `push_to_hub` (extra `hub`).

    model = vatt.VATT.from_pretrained("DIR or user/name")      # eval mode, float32, on the CPU
    model.tokenizer.encode("a dog pulls a sled")               # None for a model without word list
    model.push_to_hub("user/name")

The class stands above the model, data and run rooms because what it saves is more than weights: settings and word list
make up a model folder that every command and `vatt.load` take. Without huggingface_hub, use `vatt.load(DIR)`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from ..config.model import ModelConfig
from ..config.pretraining import Config
from ..config.run import RunConfig
from ..data.tokenizer import Tokenizer
from ..errors import MissingPackage
from ..model.vatt import VATT as Model
from ..ops import REFERENCE, Ops, choose
from ..runtime.provenance import public
from .loading import build_fitting, load_weights
from .model_folder import VOCABULARY, load_config, load_tokenizer, model_folder, write_config

try:
    from huggingface_hub import ModelHubMixin, snapshot_download
except ImportError as error:
    raise MissingPackage(
        "vatt.checkpoints.hub needs huggingface_hub: pip install -e '.[hub]' in the project's folder; "
        "vatt.load(DIR) works without"
    ) from error


class VATT(  # type: ignore[call-arg, unused-ignore]  # the keywords are the mixin's
    ModelHubMixin,
    Model,
    library_name="vatt",
    tags=["video", "audio", "text", "multimodal"],
):
    """The pre-training model with methods of the hub. `settings`: all of config.json; `tokenizer`: its word list."""

    def __init__(self, config: ModelConfig, ops: Ops = REFERENCE):
        super().__init__(config, ops)
        self.settings: RunConfig = Config(preset="custom", model=config)
        self.tokenizer: Tokenizer | None = None

    def _save_pretrained(self, save_directory: Path) -> None:
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(weights, save_directory / "model.safetensors")
        # What others may see names files, not the folders of this machine in which they lie.
        data = self.settings.data
        data = replace(data, source=public(data.source), vocabulary=public(data.vocabulary))
        write_config(save_directory, replace(self.settings, data=data), {})
        if self.tokenizer is not None:
            self.tokenizer.save(save_directory / VOCABULARY)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        fused: bool | None = None,
        **given: Any,
    ) -> VATT:
        """`fused` as in `vatt.load`."""
        # The mixin passes on what it read from config.json, older ones also how to download; both are done here.
        if unknown := set(given) - {"config", "proxies", "resume_download"}:
            raise TypeError(f"from_pretrained takes no {', '.join(sorted(unknown))}")
        folder = Path(model_id)
        if not folder.is_dir():
            folder = Path(
                snapshot_download(
                    model_id,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                    allow_patterns=["config.json", "model*.safetensors", "model.safetensors.index.json", VOCABULARY],
                )
            )
        settings = load_config(folder)
        ops = choose(settings.fused if fused is None else fused, "cpu")
        model = build_fitting(folder, settings, lambda: cls(settings.model, ops))
        load_weights(model, folder)
        model.settings = settings
        if (model_folder(folder) / VOCABULARY).is_file():
            model.tokenizer = load_tokenizer(folder)
        return model.eval()
