"""Makes `emblem_fid.json`: torch-fidelity's FID and KID of 4,096 training and 4,096 bank images.

    PYTHONPATH=. python tests/evaluate/reference/make_emblem_fid.py pictures build/emblem_fid
    PYTHONPATH=. python tests/evaluate/reference/make_emblem_fid.py 8 build/emblem_fid 4096

The first needs what the library needs, the second what `make_fid.py` names: distances by a network
of width 8, FID's own having 32, and its random weights as torch saves them. Stopped, it goes on
where it was. What we find for the same files, with torch installed to read them:

    python -m launch.evaluate coco_fid --made build/emblem_fid/made --real build/emblem_fid/real \\
        --inception build/emblem_fid/inception_8.pth --resize legacy_tensorflow --crop 0 \\
        --captions build/emblem_fid/captions.json --out build/emblem_fid/ours_8

FID 0.56525 and KID 0.16917: they differ from torch-fidelity's by 6e-7 and 1.1e-5 of themselves
(torch 2.13, Python 3.11, jax 0.10.2, two Intel Xeon cores).

At full width, `32 build/emblem_fid 1024` has been compared, the first 1,024 images of either set
in folders of their own: FID 5.45552 and KID -0.26285 differ by 2.0e-5 and 9e-7, no feature by more
than 1e-6 of the largest. 4,096 at full width are open.
"""

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image

HERE = Path(__file__).parent
COUNT = 4096
SPLITS = {"made": "train", "real": "bank"}
_PIECE = 128


def pictures(split: str) -> Iterator[np.ndarray]:
    """The images of a split's documents, in order."""
    from cm3jax.emblems import example

    for index in itertools.count():
        yield from (part for part in example(split, index).segments if not isinstance(part, str))


def write_pictures(folder: Path) -> None:
    for name, split in SPLITS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index, picture in enumerate(itertools.islice(pictures(split), COUNT)):
            PIL.Image.fromarray(picture).save(folder / name / f"{index:06d}.png")
    caption = {"id": 1, "image_id": 1, "caption": "an image"}  # the command wants a file
    value = {"images": [{"id": 1, "file_name": "none.png"}], "annotations": [caption]}
    (folder / "captions.json").write_text(json.dumps(value))


def write_distances(folder: Path, width: int, count: int) -> None:
    """Of the first `count` images of either set."""
    import torch

    from tests.evaluate.reference import make_fid

    torch.set_grad_enabled(False)
    model = make_fid.extractor(width, folder / "scratch.pth")
    torch.save(model.state_dict(), folder / f"inception_{width}.pth")
    sets = []
    for name in SPLITS:
        files = sorted((folder / name).iterdir())[:count]
        parts = []
        for start in range(0, count, _PIECE):
            store = folder / f"{name}_{width}_{start:06d}.npy"
            if not store.exists():
                part = [np.asarray(PIL.Image.open(file)) for file in files[start : start + _PIECE]]
                np.save(store, make_fid.features(model, np.stack(part)).numpy())
                print(store, flush=True)
            parts.append(np.load(store))
        sets.append(torch.from_numpy(np.concatenate(parts)))
    fid, kid = make_fid.distances(*sets).tolist()
    stored = HERE / "emblem_fid.json"
    found = json.loads(stored.read_text()) if stored.exists() else {}
    found[str(width)] = {"pictures": count, "fid": fid, "kid": kid}
    print(found)
    stored.write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    what, folder, *count = sys.argv[1:]
    if what == "pictures":
        write_pictures(Path(folder))
    else:
        write_distances(Path(folder), int(what), int(count[0]))


if __name__ == "__main__":
    main()
