"""Our model against recorded arrays of the official one: `python -m vatt.official verify DIR`.

DIR holds config.json (sizes), checkpoints ckpt_*/ and .npz files of inputs and outputs. Every array is compared or
used as an input; one that nothing reads is a failure, so that no recording is passed over.

An array passes when each element is within `absolute + relative * |recorded|` and, where `scaled` is given, the
largest error is within `scaled` times the largest recorded value: 1e-4 alone would not notice a wrong epsilon.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..ops import Ops
from ..tf_checkpoint import TFCheckpoint
from . import models, parts, towers
from .convert import Mapped, build, map_checkpoint, read_weights
