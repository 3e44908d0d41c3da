"""Fail the build of an image whose torch is not the build that was asked for."""

import sys

import torch

found = "cpu" if torch.version.cuda is None else "cuda"
if sys.argv[1] != found:
    sys.exit(
        f"VARIANT={sys.argv[1]}, and pip installed torch {torch.__version__}, its {found} build. "
        "VARIANT is cpu or cuda. Give the package index that has that build of torch: "
        "--build-arg TORCH_INDEX=URL."
    )
