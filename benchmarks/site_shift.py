"""How far the shift of a site is from the truth, and how often its interval holds it.

    python -m benchmarks.site_shift [--cohorts 600]

Healthy people of sites whose shifts are drawn and known: the mean squared error of the shift
beside that of the plain mean of the site, and the share of 95 % intervals that hold the truth, of
all sites and of the smallest alone.
"""

import argparse

import numpy as np
import xarray as xr

import scalebrain

WITHIN = 4.0  # years, standard deviation of brain-PAD between people of a site
CASES = (
    ([5, 8, 12, 20, 40, 80, 5, 8, 12, 20], 2.0),
    ([30] * 34, 1.5),
    ([20] * 5, 1.0),
    ([10] * 3, 1.0),
    ([8, 100, 100], 2.0),
)


def drawn(sizes: list[int], between: float, n: int, seed: int) -> tuple[xr.Dataset, np.ndarray]:
    """Healthy people with `n` independent brain-PADs each, and the shifts (site, brain-PAD)."""
    rng = np.random.default_rng(seed)
    shift = rng.normal(0, between, (len(sizes), n))
    own = np.repeat(np.arange(len(sizes)), sizes)
    pad = shift[own] + rng.normal(0, WITHIN, (own.size, n))
    ds = xr.Dataset(
        {"brain_pad_corrected": (("subject", "draw"), pad)},
        coords={
            "cohort": ("subject", [f"site{i:02}" for i in own]),
            "group": ("subject", np.full(own.size, "reference")),
        },
    )
    return ds, shift


def main() -> None:
    """Print a row a case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cohorts", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print("| healthy people of the sites | SD between | MSE / that of means | held | smallest |")
    print("|---|---|---|---|---|")
    for sizes, between in CASES:
        ds, true = drawn(sizes, between, options.cohorts, options.seed)
        found = scalebrain.site_shift(ds)
        error = ((found["site_shift"].values - true) ** 2).mean()
        error /= ((found["site_mean"].values - true) ** 2).mean()
        inside = (found["site_shift_low"].values <= true) & (true <= found["site_shift_high"])
        least = float(inside[int(np.argmin(sizes))].mean())
        named = (
            f"{len(sizes)} of {sizes[0]}" if len(set(sizes)) == 1 else ", ".join(map(str, sizes))
        )
        print(
            f"| {named} | {between:g} | {error:.2f} | {100 * float(inside.mean()):.1f} % | "
            f"{100 * least:.1f} % |"
        )


if __name__ == "__main__":
    main()
