"""The state of one run: what a checkpoint saves and restores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.optim import Optimizer

from ..checkpoints import training_checkpoint
from ..checkpoints.sharded import is_sharded, load_shards, save_shards
from ..checkpoints.training_checkpoint import DamagedCheckpoint
from ..data.bad_clips import BadClips
from ..data.clip import Manifest
from ..errors import ConfigError, DataError, RunError
from ..runtime.distributed import SINGLE_PROCESS, World
from ..runtime.forms import FormError, require_form

# What a checkpoint's state holds.
STATE = {
    "manifest": str,
    "words?": str,
    "record": str,
    "bad_clips": {"size": int, "records": [list]},
    "optimizer": dict,
}


@dataclass(frozen=True)
class Session:
    """What a run in folder `out` trains, and what its checkpoints hold.

    `identity`: fingerprints of what must not change while the run lasts, each with the file to restore if it did.
    `record`: settings and environment as JSON, so that a damaged config.json costs nothing.
    """

    out: Path
    manifest: Manifest
    model: nn.Module
    optimizer: Optimizer
    bad: BadClips
    identity: dict[str, tuple[str, Path]]
    record: str
    world: World = SINGLE_PROCESS

    def restore(self, steps: int) -> int:
        """Take up the newest whole checkpoint.

        Returns:
            How many steps are done, 0 without a checkpoint.

        Raises:
            RunError: something of `identity` changed, or the checkpoint does not fit the run.
            ConfigError: the run is past `steps` already, or cannot be resumed in this way.
        """
        checkpoint = training_checkpoint.load_latest(self.out / "checkpoints")
        self.world.require_same("newest checkpoints, steps", checkpoint.step if checkpoint else 0)
        if checkpoint is None:
            return 0
        try:
            require_form(checkpoint.state, STATE)
        except FormError as error:
            raise DamagedCheckpoint(f"{checkpoint.path} is of no run of this kind: {error}") from error
        for label, (fingerprint, path) in self.identity.items():
            if checkpoint.state[label] != fingerprint:
                raise RunError(f"{path}: the {label} changed since the run began; restore them, or start another run")
        if checkpoint.step > steps:
            raise ConfigError(f"steps is {steps}, but the run is at step {checkpoint.step} already")
        if checkpoint.model is not None and is_sharded(self.model):
            raise ConfigError(f"{checkpoint.path} is not sharded; resume with --parallel ddp")
        try:
            if checkpoint.model is None:
                shards = checkpoint.path / training_checkpoint.SHARDS
                load_shards(shards, self.model, self.optimizer, checkpoint.state["optimizer"])
            else:
                self.model.load_state_dict(checkpoint.model)
                self.optimizer.load_state_dict(checkpoint.state["optimizer"])
            self.bad.load_state_dict(checkpoint.state["bad_clips"])
        except (RunError, DataError):
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, CheckpointException) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise DamagedCheckpoint(
                f"{checkpoint.path} does not fit this run ({reason}); resume it with the version of vatt that wrote it"
            ) from error
        return checkpoint.step

    def save(self, step: int, keep: int, bad_clips: dict[str, Any] | None = None) -> None:
        """Write checkpoint `step`.

        All ranks call it; each writes its part of a sharded model, the first one everything else.

        Args:
            step: how many steps are done.
            keep: how many checkpoints stay.
            bad_clips: the state of the bad clips, if the present one does not belong to that step.
        """
        self.world.on_main(self.bad.write)  # refreshes the counts
        folder = self.out / "checkpoints"
        state = {
            "bad_clips": bad_clips or self.bad.state_dict(),
            "record": self.record,
            **{label: value for label, (value, _) in self.identity.items()},
        }
        if not is_sharded(self.model):
            whole = state | {"optimizer": self.optimizer.state_dict()}
            self.world.on_main(
                lambda: training_checkpoint.save(folder, step, self.model.state_dict(), whole, keep=keep)
            )
            return
        writer = training_checkpoint.CheckpointWriter(folder, step, keep)
        if self.world.on_main(writer.create):
            with writer:
                rest = save_shards(writer.temporary / training_checkpoint.SHARDS, self.model, self.optimizer)
                self.world.on_main(lambda: writer.commit(state | {"optimizer": rest}))
