"""What a run was made with and needs again: its tokenizers, its encoder, its bank."""

import os
from collections.abc import Callable

from etils import epath

from cm3jax.errors import UserError
from cm3jax.training.exported_run import PARAMS_FILE, LoadedRun
from cm3jax.training.hub_runs import is_hub_id, snapshot


def run_folder(path: epath.PathLike) -> tuple[epath.Path, int | None]:
    """The run directory that a path names, and the step where it names one of its checkpoints,
    as `RUN/checkpoints/250`. The id of a run on the hub names its snapshot in the hub's cache."""
    if is_hub_id(path):
        return epath.Path(snapshot(str(path))), None
    place = epath.Path(path).resolve()
    if place.parent.name == "checkpoints" and place.name.isdecimal():
        return place.parent.parent, int(place.name)
    return place, None


def companion(
    run_dir: epath.PathLike,
    run: LoadedRun,
    path: str,
    wanted: str = "",
    fingerprint: Callable[[epath.Path], str] | None = None,
) -> epath.Path:
    """The present place of what a run's config calls `path`, wherever the run was moved to.

    A run finds it at `path`, at the same place seen from the run directory as when it was trained,
    or under its name in the run or beside it; exported weights, which are shipped together, in the
    opposite order. Where there are several, `fingerprint` tells which is the `wanted` one, if the
    run knows; `UserError` if none is. Where there is none it is `path`, for the caller to miss.
    """
    found = [place for place in _places(run_dir, run, path) if place.exists()]
    if len(found) < 2 or not wanted or fingerprint is None:
        return found[0] if found else epath.Path(path)
    seen = []
    for place in found:
        try:
            mark = fingerprint(place)
        except UserError as error:
            mark = str(error)
        if mark == wanted:
            return place
        seen.append(f"{place} ({mark})")
    raise UserError(
        f"{run_dir} was made with {path} of fingerprint {wanted}, but there are {', '.join(seen)}; "
        "put the one that made it there."
    )


def encoder_fingerprint(run: LoadedRun) -> str:
    """Fingerprint of the encoder that chose a decoder's training documents; empty if unknown."""
    marks = {mark for name, mark in run.data.items() if name.partition(" ")[0] == "encoder"}
    return marks.pop() if len(marks) == 1 else ""


def _places(run_dir: epath.PathLike, run: LoadedRun, path: str) -> list[epath.Path]:
    """Each place once, the likeliest first."""
    if not path:
        return []
    given, here = epath.Path(path), run_folder(run_dir)[0]
    together = [here / given.name, here.parent / given.name]
    if (here / PARAMS_FILE).exists():
        places = [*together, given]
    else:
        places = [given, *_seen_from(here, run.experiment.run_dir, path), *together]
    return list({os.path.realpath(place): place for place in reversed(places)}.values())[::-1]


def _seen_from(here: epath.Path, trained_in: str, path: str) -> list[epath.Path]:
    """The place of `path` if all that was around the run moved with it."""
    if os.path.isabs(path) != os.path.isabs(trained_in) or "://" in path + trained_in:
        return []
    return [epath.Path(os.path.normpath(here / os.path.relpath(path, trained_in)))]
