"""The official TensorFlow checkpoints in PyTorch: `python -m vatt.official inspect | convert | verify`.

names.py     which checkpoint variable is which of our parameters
sizes.py     kind and sizes of the model, from keys and shapes
convert.py   weights and moments in our layout; the folder that is written
recording.py recorded arrays of the official model, tolerances, rows
verify.py    the list of checks; towers.py, models.py and parts.py hold them
__main__.py  the commands
"""
