"""A training loop of your own: the model, the batches and the losses as parts, any optimiser.

    python examples/custom_loop.py clips/ --steps 100

`python -m vatt.train` is this with checkpoints, resume, several processes and records.
"""

import argparse

import torch

from vatt.config.presets import preset
from vatt.data.datasets.training import ClipDataset
from vatt.data.loader import make_loader
from vatt.data.manifest import read_manifest
from vatt.data.tokenizer import Tokenizer
from vatt.model.losses import pretraining_loss
from vatt.model.vatt import VATT
from vatt.ops import choose


def main(argv: list[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("clips")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=1, help="decoding processes; 0: this one")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)

    config, clips = preset("tiny"), read_manifest(args.clips)
    tokenizer = Tokenizer.build((c for clip in clips for c in clip.captions), config.model.text.vocabulary)
    dataset = ClipDataset(clips, config.data, config.model, tokenizer, seed=1, batch_size=args.batch_size)

    torch.manual_seed(1)
    ops = choose(fused=True, device=args.device)
    model = VATT(config.model, ops).to(args.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    losses = []
    for step, made in enumerate(make_loader(dataset, 0, args.steps, args.workers)):
        batch = made.to(args.device)
        # DropToken is a function of the seed; what a clip lacks is masked in the loss.
        embeddings = model(batch.video, batch.audio, batch.text, seed=step)
        loss = pretraining_loss(
            embeddings, batch.audio_mask, batch.text_mask, config.loss, ops, video_mask=batch.video_mask
        )
        optimizer.zero_grad()
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.total.item())
        print(f"step {step + 1}: {losses[-1]:.3f} (text {loss.video_text:.3f}, sound {loss.video_audio:.3f})")
    return losses


if __name__ == "__main__":  # data workers import this file anew
    main()
