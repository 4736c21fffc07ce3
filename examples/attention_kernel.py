"""The operations without the models: attention with the T5 bias, its gradients, and DropToken, beside plain PyTorch.

    python examples/attention_kernel.py

`impl` chooses: "reference" is the specification in a few literal lines, "portable" runs anywhere without storing
probabilities, "triton" is the GPU's. Left out, it follows the device.
"""

import argparse

import torch
from vatt_kernels import attention, gather_tokens, sample_keep


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int, default=256)
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    shape = (2, args.tokens, 4, 64)  # batch, tokens, heads, width of a head
    q, k, v = (torch.randn(shape, device=args.device, requires_grad=True) for _ in range(3))
    ours = attention(q, k, v)
    plain = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    weight = torch.randn_like(ours)
    gradients = [torch.autograd.grad((out * weight).sum(), (q, k, v)) for out in (ours, plain)]
    differences = {"output": (ours - plain).abs().max().item()}
    for name, a, b in zip("qkv", *gradients, strict=True):
        differences[f"gradient of {name}"] = (a - b).abs().max().item()

    # The text encoder's bias: a table of buckets of distance, a column a head. Padding is masked and gives 0.
    table = torch.randn(32, 4, device=args.device)
    mask = torch.arange(args.tokens, device=args.device) < torch.tensor([[args.tokens], [5]], device=args.device)
    biased = attention(q, k, v, key_mask=mask, bias_table=table, scale=1.0)
    literal = attention(q, k, v, key_mask=mask, bias_table=table, scale=1.0, impl="reference")
    differences["with bias and mask"] = (biased - literal).abs().max().item()

    # DropToken: half of the tokens, a function of the seed alone, the same on every device.
    keep = sample_keep(args.tokens, args.tokens // 2, seed=7, device=args.device)
    kept = gather_tokens(q.flatten(2), keep)
    print(f"kept {kept.shape[1]} of {args.tokens} tokens")
    for name, value in differences.items():
        print(f"{name:16}  largest difference {value:.1e}")
    return differences


if __name__ == "__main__":
    main()
