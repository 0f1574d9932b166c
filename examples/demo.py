"""What GATv2 is for, in two pictures.

    python examples/demo.py --output results

1. A problem that needs a ranking of the keys for each query: GAT fails, GATv2 solves it.
2. Real data, by dense and by sparse attention from one seed: the same predictions.
"""

import argparse
import time
from pathlib import Path

import digits
import lookup
import matplotlib as mpl
import torch


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("results"), metavar="DIR")
    parser.add_argument("--k", type=int, default=10, help="keys to look up (default: 10)")
    parser.add_argument("--lookup-epochs", type=int, default=10, help="at most (default: 10)")
    parser.add_argument("--digits-epochs", type=int, default=30, help="(default: 30)")
    parser.add_argument("--seed", type=int, default=3, help="(default: 3)")
    arguments = parser.parse_args()
    mpl.use("Agg")
    # a second one gains nothing here, and is waited for where the CPU is busy
    torch.set_num_threads(1)
    start = time.perf_counter()
    print("1. One ranking of the keys is not enough\n")
    pictures = [
        lookup.run(
            arguments.output,
            k=arguments.k,
            n_epochs=arguments.lookup_epochs,
            seed=arguments.seed,
        )
    ]
    print("\n2. Dense and sparse are one layer\n")
    pictures.append(
        digits.run(arguments.output, n_epochs=arguments.digits_epochs, seed=arguments.seed)
    )
    print(f"\nDone in {time.perf_counter() - start:.0f} s. Pictures:")
    for picture in pictures:
        print(f"  {picture.resolve()}")


if __name__ == "__main__":
    main()
