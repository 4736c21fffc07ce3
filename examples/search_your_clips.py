"""Which clips fit these words? Embeds a folder of clips and ranks them for every text.

    python examples/search_your_clips.py runs/tiny/model clips/ "a red circle" "a blue square"

For archives: `python -m vatt.embed` keeps the features in a file, resumes, and shares its clips among processes;
`vatt.SearchIndex("features.npz")` and `python -m vatt.search` read it.
"""

import argparse
from pathlib import Path

import vatt


def main(argv: list[str] | None = None) -> list[list[str]]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("clips")
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--windows", type=int, default=4, help="of a clip, over which its embeddings are averaged")
    args = parser.parse_args(argv)

    model = vatt.load(args.model)
    # workers=2 decodes in two processes; clips that cannot be read are listed and take no part.
    features = vatt.embed(model, args.clips, windows=args.windows)
    index = vatt.SearchIndex(features, model)
    found = []
    for text in args.texts:  # index.search(audio="bark.wav") and video="dog.mp4" rank by likeness to a file
        hits = index.search(text, top=5)
        print(text, *(f"  {hit['cosine']:.3f}  {hit['path']}" for hit in hits), sep="\n")
        found.append([Path(hit["path"]).name for hit in hits])
    return found


if __name__ == "__main__":
    main()
