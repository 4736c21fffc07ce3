"""From rows of a manifest to batches."""

from .clip import Clip, Manifest, ManifestError
from .manifest import read_manifest, write_manifest
from .tokenizer import Tokenizer, VocabularyError

__all__ = ["Clip", "Manifest", "ManifestError", "Tokenizer", "VocabularyError", "read_manifest", "write_manifest"]
