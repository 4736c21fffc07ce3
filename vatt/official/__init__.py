"""The official TensorFlow checkpoints in PyTorch: `python -m vatt.official inspect | convert | verify`.

names.py     which checkpoint variable is which of our parameters
sizes.py     kind and sizes of the model, from keys and shapes
convert.py   weights and moments in our layout; the folder that is written
verify.py    our model against recorded outputs of the official one: rows, tolerances, the list of checks
towers.py, models.py, parts.py    the checks themselves
"""
