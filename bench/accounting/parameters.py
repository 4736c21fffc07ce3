"""The configurations whose parameters the paper counts."""

from __future__ import annotations

# Totals of the official models: Keras' count, the frozen word table and moving statistics among them.
PRETRAINING = {"bbs": 213_540_652, "mbs": 280_569_132, "lbs": 431_723_820, "ma_medium": 182_653_696}
