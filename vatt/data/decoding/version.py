"""What the decoding of clips is called in the record of a run, raised with every change of what valid files give."""

from __future__ import annotations

DECODING = 2
DECODING_CHANGES = (
    "AVI with B-frames, mirrored pictures, levels after shrinking to an even width, recordings joined into one file, "
    "H.264 with 4:4:4 colours of old encoders, streams without timestamps, sound that cannot be mixed down or lost a "
    "packet, the end of MP4 sound, the length of MPEG program streams"
)
