"""GFLOP/s of linear layers: PyTorch's own products, oneDNN's, and oneDNN's with packed weights.

    python benchmarks/matmuls.py

A row is a token: 64 rows are a step of decoding, 1,024 a minibatch of the update. PyTorch multiplies float32 by MKL on
x86, and bfloat16 by oneDNN. The weights of several layers take turns, so that no cache holds them.
"""

import time

import torch
from machine import processor, revision, versions

SHAPES = {"embedded model": (256, 1024), "GPT-2 small": (768, 3072), "GPT-2 small's head": (768, 50257)}
mkldnn = torch.ops.mkldnn


def rate(operations: int, products: list, repeats: int = 20) -> float:
    """GFLOP/s of the fastest of some rounds of products."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        for product in products:
            product()
        best = min(best, time.perf_counter() - start)
    return len(products) * operations / best / 1e9


@torch.no_grad()
def main() -> None:
    print(f"{processor()}, {torch.get_num_threads()} threads; {versions('torch')}; {revision()}\n")
    print("| type | layer | rows | PyTorch | oneDNN | packed |\n| --- | --- | ---: | ---: | ---: | ---: |")
    for dtype in (torch.float32, torch.bfloat16):
        for name, (width, out) in SHAPES.items():
            for rows in (64, 1024):
                states = torch.randn(rows, width, dtype=dtype)
                weights = [torch.randn(out, width, dtype=dtype) for _ in range(1 if out > 10_000 else 8)]
                packed = [mkldnn._reorder_linear_weight(weight, rows) for weight in weights]

                def by_onednn(weight, states=states):
                    return lambda: mkldnn._linear_pointwise(states, weight, None, "none", [], "")

                rates = [
                    rate(2 * rows * width * out, products)
                    for products in (
                        [lambda weight=weight, states=states: states @ weight.t() for weight in weights],
                        [by_onednn(weight) for weight in weights],
                        [by_onednn(weight) for weight in packed],
                    )
                ]
                cells = " | ".join(f"{each:,.0f}" for each in rates)
                print(f"| {str(dtype)[6:]} | {name}, {width} to {out} | {rows:,} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
