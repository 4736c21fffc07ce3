"""From files to embeddings: which of its captions does a clip fit best?

    python examples/load_and_embed.py runs/tiny/model clips/

The first is a folder that training, conversion or `save_pretrained` wrote; the second one of clips, with a .txt of
captions beside each, or a manifest.
"""

import argparse

import torch

import vatt


def main(argv: list[str] | None = None) -> dict[str, torch.Tensor]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("clips")
    args = parser.parse_args(argv)

    model = vatt.load(args.model)  # in eval mode, on the CPU; device="cuda" for a GPU
    embeddings = {}
    for row in vatt.read_manifest(args.clips):
        try:  # one window: frames uint8 [1, T, H, W, 3] and sound float32 [1, S], zeros where there is none
            clip = vatt.read_clip(row.path, model.settings, start=row.start, end=row.end)
        except vatt.VattError as error:
            print(error)
            continue
        with torch.inference_mode():
            to_audio, to_text = model.embed_video(clip.video)  # in the official sizes [1, 512], [1, 256]
            embeddings[row.name] = to_text[0]
            if clip.audio_mask[0]:
                sound = model.embed_audio(clip.audio)
                print(f"{row.name}: its own sound {torch.cosine_similarity(to_audio, sound)[0]:.3f}")
            if row.captions:
                texts = model.embed_text(list(row.captions))  # [captions, 256]
                for caption, cosine in zip(row.captions, torch.cosine_similarity(to_text, texts), strict=True):
                    print(f"  {cosine:.3f}  {caption}")
    return embeddings


if __name__ == "__main__":
    main()
