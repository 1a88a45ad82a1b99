"""Makes `fid.npz`: what torch-fidelity 0.4 and clean-fid 0.1.35 find for `tests.evaluate.inputs`.

    pip install torch numpy pillow tqdm requests
    pip install --no-deps torch-fidelity==0.4.0 clean-fid==0.1.35
    PYTHONPATH=. python tests/evaluate/reference/make_fid.py

The extractor is torch-fidelity's own class. torchvision, which its package imports for other
things and which does not import beside torch for CPUs, is an empty module here. The narrow network
is the same class with a sixteenth of every convolution's channels.
"""

# ruff: noqa: E402

import sys
import types
from pathlib import Path

import numpy as np


class _Absent(types.ModuleType):
    """A module that has every attribute, none of them of use."""

    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


_PARTS = ("transforms", "transforms.functional", "datasets", "models", "utils")
for _part in ("", *(f".{part}" for part in _PARTS)):
    _module = sys.modules[f"torchvision{_part}"] = _Absent(f"torchvision{_part}")
    if _part:
        _parent, _, _leaf = f"torchvision{_part}".rpartition(".")
        setattr(sys.modules[_parent], _leaf, _module)

import torch
from cleanfid.resize import build_resizer
from torch_fidelity import feature_extractor_inceptionv3 as source
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from tests.evaluate import inputs

EVERY = 13  # of the resized images every so-many-th row and column is stored


def extractor(width: int, scratch: Path):
    """torch-fidelity's extractor of this width with `inputs.weights`."""

    def part(channels: int) -> int:
        return channels if channels == 3 else channels * width // 32

    narrow = types.SimpleNamespace(**vars(torch.nn))
    narrow.Conv2d = lambda i, o, **options: torch.nn.Conv2d(part(i), part(o), **options)
    narrow.BatchNorm2d = lambda n, **options: torch.nn.BatchNorm2d(part(n), **options)
    source.nn = narrow
    saved = torch.nn.Module.load_state_dict
    try:
        torch.save({}, scratch)
        torch.nn.Module.load_state_dict = lambda self, state: None
        model = source.FeatureExtractorInceptionV3("inception", ["2048"], str(scratch))
    finally:
        torch.nn.Module.load_state_dict = saved
        source.nn = torch.nn
    shapes = {n: tuple(v.shape) for n, v in model.state_dict().items()}
    kept = {n: s for n, s in shapes.items() if not n.startswith("fc.") and "num_batches" not in n}
    tensors = {n: torch.from_numpy(v) for n, v in inputs.weights(kept).items()}
    model.load_state_dict(tensors, strict=False)
    return model


def features(model, pictures: np.ndarray) -> torch.Tensor:
    parts = []
    for start in range(0, len(pictures), 64):
        batch = torch.from_numpy(pictures[start : start + 64]).permute(0, 3, 1, 2)
        parts.append(model(batch)[0])
    return torch.cat(parts)


def distances(made: torch.Tensor, real: torch.Tensor) -> np.ndarray:
    """FID and KID, both in float64."""
    made, real = made.double(), real.double()
    fid = fid_statistics_to_metric(
        fid_features_to_statistics(made), fid_features_to_statistics(real), verbose=False
    )
    kid = kid_features_to_metric(
        made,
        real,
        kid_subsets=100,
        kid_subset_size=min(1000, len(made)),
        kid_kernel="poly",
        kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None,
        kid_kernel_poly_coef0=1,
        rng_seed=2020,
        verbose=False,
    )
    return np.float64([fid["frechet_inception_distance"], kid["kernel_inception_distance_mean"]])


def resized() -> dict[str, np.ndarray]:
    """Two sizes of images, one larger than the network reads and not square, three ways."""
    out = {}
    for name, size in (("small", 24), ("large", 400)):
        picture = inputs.pictures(1, seed=5, size=size)[0][:, : size - 3]
        for mode in ("clean", "legacy_pytorch"):
            out[f"{name}_{mode}"] = build_resizer(mode)(picture)[::EVERY, ::EVERY]
        tensor = torch.from_numpy(picture).float().permute(2, 0, 1)[None]
        found = interpolate_bilinear_2d_like_tensorflow1x(tensor, (299, 299), align_corners=False)
        out[f"{name}_legacy_tensorflow"] = found[0].permute(1, 2, 0).numpy()[::EVERY, ::EVERY]
    return out


def main() -> None:
    here = Path(__file__).parent
    scratch = here / ".scratch.pth"
    torch.set_grad_enabled(False)
    full, narrow = extractor(32, scratch), extractor(2, scratch)
    scratch.unlink()
    found = resized()
    found["features_32"] = features(full, inputs.pictures(2, seed=3)).numpy()
    found["features_2"] = features(narrow, inputs.pictures(4096, seed=1)[:8]).numpy()
    one, two = (torch.from_numpy(inputs.features(4096, 64, seed)) for seed in (1, 2))
    found["distances_random_64"] = distances(one, two)
    np.savez_compressed(here / "fid.npz", **found)
    print(found["distances_random_64"])


if __name__ == "__main__":
    main()
