"""Tests that compute in bfloat16 say why they cannot where PyTorch cannot."""

import pytest
import torch

from vatt.errors import ConfigError
from vatt.runtime.device import require_bfloat16


def skip_without_bfloat16() -> None:
    """Skip the test with the reason that a user is told."""
    try:
        require_bfloat16(torch.device("cpu"))
    except ConfigError as error:
        pytest.skip(str(error))
