"""Which clips fit these words? Embeds a folder once, keeps the vectors, and ranks them for every text.

    python examples/search_your_clips.py runs/tiny/model clips/ "a red circle" "something beeps"

`python -m vatt.embed` and `python -m vatt.search` do the same for archives: resumable, on several processes, and by
sound or video too.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

import vatt
from vatt.data.datasets.evaluation import EvalDataset
from vatt.data.manifest import read_manifest


def main(argv: list[str] | None = None) -> list[list[str]]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("clips")
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--index", type=Path, default=Path("index.npz"), help="vectors are kept here")
    args = parser.parse_args(argv)
    model = vatt.load(args.model)
    config, tokenizer = vatt.load_config(args.model), vatt.load_tokenizer(args.model)

    if not args.index.exists():
        clips = read_manifest(args.clips)
        dataset = EvalDataset(clips, config.data, config.model, tokenizer, windows=4, batch_size=8)
        names, vectors = [], []
        for step in range(len(dataset)):
            batch = dataset[step]
            names += [clips[row].name for row in batch.clips]
            with torch.inference_mode():  # the mean over the windows of each clip
                windows = batch.video.flatten(0, 1)
                vectors.append(model.embed_video(windows)[1].unflatten(0, (-1, 4)).mean(1))
        np.savez(args.index, names=names, vectors=torch.nn.functional.normalize(torch.cat(vectors)).numpy())

    index = np.load(args.index)
    found = []
    for text in args.texts:
        words = torch.from_numpy(tokenizer.encode(text, config.model.text.words))
        with torch.inference_mode():
            query = torch.nn.functional.normalize(model.embed_text(words[None, None])[0, 0], dim=0).numpy()
        cosines = index["vectors"] @ query
        order = np.argsort(-cosines)[:5]
        found.append([str(index["names"][i]) for i in order])
        print(text, *(f"  {cosines[i]:.3f}  {index['names'][i]}" for i in order), sep="\n")
    return found


if __name__ == "__main__":
    main()
