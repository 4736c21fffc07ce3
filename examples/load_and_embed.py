"""From files to embeddings: which of its captions does a clip fit best?

    python examples/load_and_embed.py runs/tiny/model clips/

The first is a folder that training, conversion or `save_pretrained` wrote; the second one of clips, with a .txt of
captions beside each, or a manifest.
"""

import argparse

import torch

import vatt
from vatt.data.datasets.evaluation import EvalDataset
from vatt.data.manifest import read_manifest


def main(argv: list[str] | None = None) -> dict[str, torch.Tensor]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("clips")
    args = parser.parse_args(argv)

    model = vatt.load(args.model)  # in eval mode, on the CPU; device="cuda" for a GPU
    config, tokenizer = vatt.load_config(args.model), vatt.load_tokenizer(args.model)
    clips = read_manifest(args.clips)
    # One window from the middle of each clip: frames uint8 [1, V, T, H, W, 3] and sound float32 [1, V, S], V windows.
    dataset = EvalDataset(clips, config.data, config.model, tokenizer, windows=1, batch_size=1)

    embeddings = {}
    for position, clip in enumerate(clips):
        batch = dataset[position]
        if batch.bad:  # (row, why it cannot be used)
            print(f"{clip.name}: {batch.bad[0][1]}")
            continue
        with torch.inference_mode():
            to_audio, to_text = model.embed_video(batch.video[0])  # in the official sizes [V, 512], [V, 256]
            embeddings[clip.name] = to_text[0]
            if batch.audio_mask[0]:  # clips without sound are silent rows
                sound = model.embed_audio(batch.audio[0])
                print(f"{clip.name}: its own sound {torch.cosine_similarity(to_audio, sound)[0]:.3f}")
            for caption in clip.captions:
                words = torch.from_numpy(tokenizer.encode(caption, config.model.text.words))
                text = model.embed_text(words[None, None])[0, 0]
                print(f"  {torch.cosine_similarity(to_text[0], text, dim=0):.3f}  {caption}")
    return embeddings


if __name__ == "__main__":
    main()
