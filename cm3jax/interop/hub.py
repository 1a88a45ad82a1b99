"""Runs go to the hub with all that they need; `training.hub_runs` finds them there.

    params.safetensors, config.json       the decoder
    text/  vqgan/  clip/                  its tokenizers, and the encoder that retrieves for it
    README.md  scores.json                its card, and its scores with their protocols

No file is a pickle. The memory bank stays where it is: its documents have licences of their own.
"""

import dataclasses
import hashlib
import re
from pathlib import Path

from etils import epath

from cm3jax.checkpoint import load_run
from cm3jax.config import CacheType, DataConfig, Experiment, WeightType
from cm3jax.errors import UserError
from cm3jax.interop.hf_chameleon import NOTES_FILE
from cm3jax.io.experiment_json import read_experiment, save_experiment
from cm3jax.io.files import write_atomic
from cm3jax.io.texts import read_regular
from cm3jax.learners.parts import encoder_folder, image_folder, text_folder
from cm3jax.tokenizers.text_tokenizer import MODEL_FILE, TextTokenizer, read_model
from cm3jax.training.exported_run import PARAMS_FILE, LoadedRun, write_run

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_OPTIONAL = (
    "scores.json",
    *(f"text/{name}" for name in ("config.json", NOTES_FILE)),
    *(f"clip/{name}" for name in ("config.json", PARAMS_FILE, MODEL_FILE)),
)
"""What only some runs have, in a repository: left there, it would be taken for the next run's."""
_CARD = "README.md"
_MADE_BY_THE_HUB = {".gitattributes"}
"""What is in a repository as soon as there is one."""


def write_whole_run(
    run_dir: epath.PathLike, out: Path, weights: WeightType = "", cache: CacheType = ""
) -> LoadedRun:
    """Write a decoder with its tokenizers and its encoder to the folder `out`, and return it.

    `weights` and `cache` replace what its config says of its generation (`LoadedRun.kept_as`).
    Paths of this machine are left out. Raises `UserError` for another kind of run, and where one
    of these parts is missing.
    """
    run = load_run(run_dir).kept_as(weights, cache)
    if not run.experiment.decodes:
        raise UserError(f"{run_dir} is a run of a {run.experiment.learner}; give a decoder's.")
    _write(run, out)
    text = text_folder(run_dir, run)
    TextTokenizer.load(text)  # raises for a damaged one
    _copy_text(text, out / "text")
    _write(load_run(image_folder(run_dir, run)), out / "vqgan")
    if run.experiment.retrieval.encoder:
        encoder = encoder_folder(run_dir, run)
        _write(load_run(encoder), out / "clip")
        write_atomic(out / "clip" / MODEL_FILE, read_model(encoder))
    return run


def _write(run: LoadedRun, out: Path) -> None:
    write_run(dataclasses.replace(run, experiment=_without_paths(run.experiment)), out)


def _copy_text(folder: epath.Path, out: Path) -> None:
    write_atomic(out / MODEL_FILE, read_model(folder))
    if (folder / "config.json").exists():
        experiment = _without_paths(read_experiment(folder / "config.json"))
        save_experiment(out / "config.json", experiment)
    if (folder / NOTES_FILE).exists():
        write_atomic(out / NOTES_FILE, read_regular(folder / NOTES_FILE))


def _without_paths(experiment: Experiment) -> Experiment:
    """The experiment with its parts where `write_whole_run` puts them, and no other folders."""
    data, retrieval = experiment.data, experiment.retrieval
    return dataclasses.replace(
        experiment,
        workdir="",
        init_from="",
        tokenizers=dataclasses.replace(experiment.tokenizers, text="text", image="vqgan"),
        retrieval=dataclasses.replace(
            retrieval, encoder="clip" if retrieval.encoder else "", milvus=""
        ),
        vqgan_loss=dataclasses.replace(
            experiment.vqgan_loss, lpips=_last(experiment.vqgan_loss.lpips)
        ),
        data=dataclasses.replace(
            data,
            source=_last(data.source),
            raw=DataConfig().raw,
            corpus="",
            bank="",
            mixture=tuple((_last(folder), weight) for folder, weight in data.mixture),
            tasks=tuple((task, _last(folder)) for task, folder in data.tasks),
        ),
    )


def _last(path: str) -> str:
    """The last part of a path: what it says of the data, without where that was."""
    return path if path.startswith("tfds:") else path.rstrip("/").rpartition("/")[2]


def require_repository(name: str) -> None:
    """Raise `UserError` unless `name` is written like a repository of the hub."""
    if not _REPOSITORY.fullmatch(name):
        raise UserError(f"--push takes OWNER/NAME, a repository of the hub, not {name!r}.")


def sign_card(card: str) -> str:
    """The card with a last line by which `require_pushed` knows it, unless somebody changes it."""
    return f"{card}<!-- uploaded by cm3jax, card {_digest(card)} -->\n"


def require_pushed(name: str, private: bool) -> str | None:
    """The newest commit of the hub's repository `name`, whose files a push may replace; None where
    there is no such repository.

    Raises `UserError` where files are there that no push put there: a repository is a push's if
    its README.md is one that `sign_card` made, and free if it is empty. Also where a public one
    would take what should be `private`.
    """
    import huggingface_hub

    hub = huggingface_hub.HfApi()
    try:
        info = hub.model_info(name, revision="main")
        files = {file.rfilename for file in info.siblings or ()} - _MADE_BY_THE_HUB
        card = ""
        if _CARD in files:
            path = hub.hf_hub_download(name, _CARD, revision=info.sha)
            card = Path(path).read_bytes().decode(errors="replace")
    except huggingface_hub.errors.RepositoryNotFoundError:
        return None
    except Exception as error:  # of the network, the hub, its permissions
        raise _not_taken(name, error) from None
    written, _, _ = card.rpartition("<!-- ")
    if files and card != sign_card(written):
        raise UserError(
            f"{name} on the hub holds files that --push did not upload, or a {_CARD} that was "
            f"changed since; give another name, or put the {_CARD} of the last push back there."
        )
    if private and not info.private:
        raise UserError(
            f"{name} on the hub is public, and --private is for new repositories; give another "
            "name, or make it private there."
        )
    return info.sha


def upload(folder: Path, name: str, private: bool, onto: str | None) -> str:
    """Upload a folder's files to the hub's model repository `name`.

    `onto` is what `require_pushed` returned: the parent commit, or None to make the repository. Its
    main branch is changed. What an earlier run had and this one has not (scores, an encoder) goes;
    files of other names stay. Returns the repository's address. Raises `UserError` if the hub
    refuses, as when another commit came in between.
    """
    import huggingface_hub

    hub = huggingface_hub.HfApi()
    try:
        if onto is None:
            hub.create_repo(name, private=private or None)
        done = hub.upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message="Upload a run of cm3jax",
            delete_patterns=list(_OPTIONAL),
            parent_commit=onto,
        )
    except Exception as error:  # of the network, the hub, its permissions
        raise _not_taken(name, error) from None
    return str(done.repo_url)


def _digest(card: str) -> str:
    return hashlib.sha256(card.encode()).hexdigest()


def _not_taken(name: str, error: Exception) -> UserError:
    return UserError(
        f"the hub did not take {name} ({type(error).__name__}); check the name, the network "
        "and `hf auth login` with a token that may write."
    )
