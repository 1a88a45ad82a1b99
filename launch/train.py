"""Train an experiment: a decoder, `parti`, a tokenizer of images or text, a retrieval encoder.

python -m launch.train quickstart --train.steps 40 --workdir runs/longer
python -m launch.train vqgan_emblems_64
python -m launch.train folder/text --data.source PICTURES
"""

import dataclasses

import jax

from cm3jax import partition
from cm3jax.config import Experiment
from cm3jax.io.folders import hold
from cm3jax.io.paths import require_unicode_path
from cm3jax.report.run_page import Illustration
from cm3jax.train import Illustrator, train
from cm3jax.training import distributed
from cm3jax.training.learner import Learner
from cm3jax.training.resume import require_run_folder
from launch.cli import parse_experiment_and
from launch.env import keep_freed_memory, main
from launch.job_inputs import inputs, require_named
from launch.parts import PARTS, naming_commands, require_corpus_read, require_made

_DESCRIPTION = (
    "Train an experiment; a run directory that holds a checkpoint is continued from its newest one."
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Options in addition to the experiment's."""

    resume_with_changes: bool = False
    """Continue a run although options or data differ that decide what is trained, such as the seed,
    the batch, the learning rate, masking or the corpus. Without it the run is refused. Changes of
    other options (train.steps, logging, saving, the mesh) are only reported."""


def run(argv: list[str]) -> None:
    """Parse the command line, train, and leave everything in the run directory."""
    experiment, options = parse_experiment_and(Options, argv, _DESCRIPTION)
    require_corpus_read(experiment)
    train_experiment(experiment, options.resume_with_changes)


def train_experiment(experiment: Experiment, resume_with_changes: bool = False) -> bool:
    """Train whatever the experiment is, or continue to; returns whether SIGTERM came, which may
    have been after the last step."""
    require_run_folder(experiment.run_dir)  # before anything is read or written
    if experiment.learner == "text_tokenizer":
        from cm3jax.learners.text import train_text_tokenizer

        with hold(experiment.run_dir, f"training {experiment.name}"):
            train_text_tokenizer(experiment)
        return False
    require_unicode_path(experiment.run_dir, "checkpoints")
    require_named(experiment, ("data.corpus",))
    require_made(experiment, [option for option in inputs(experiment) if option in PARTS])
    distributed.initialize()  # before the folder is held, which process 0 does for all
    with hold(experiment.run_dir, f"training {experiment.name}"), naming_commands(experiment, True):
        partition.find_devices(experiment.mesh.platform)  # before the data is read
        learner = make_learner(experiment)
        preemption = distributed.Preemption()
        train(learner, make_illustrator(learner), resume_with_changes, preemption)
        return preemption.noticed


def make_learner(experiment: Experiment) -> Learner:
    """The learner that an experiment names; each brings only the packages it needs."""
    match experiment.learner:
        case "decoder" if experiment.data.online:
            from cm3jax.learners.online import OnlineLearner

            return OnlineLearner.from_source(experiment)
        case "decoder":
            from cm3jax.learners.decoder import DecoderLearner

            return DecoderLearner.from_corpus(experiment)
        case "parti":
            from cm3jax.learners.parti import PartiLearner

            return PartiLearner.from_corpus(experiment)
        case "vqgan":
            from cm3jax.learners.vqgan import VQGANLearner

            return VQGANLearner(experiment)
        case "clip":
            from cm3jax.learners.clip import CLIPLearner

            return CLIPLearner.from_source(experiment)
        case _:
            raise ValueError(f"{experiment.learner} has no learner")


def make_illustrator(learner: Learner) -> Illustrator:
    """What draws for the run's report; nothing for what makes no images."""
    experiment = learner.experiment
    if not experiment.train.samples or experiment.learner not in ("decoder", "vqgan"):
        return lambda state: ()
    if jax.process_count() > 1:
        absent = Illustration.absent(
            "of several processes, none holds all parameters. Let launch.generate draw from a "
            "checkpoint."
        )
        return lambda state: (absent,)
    if experiment.data.online:
        absent = Illustration.absent(
            "rows that are made in the step are on no disk to be shown. Let launch.generate draw "
            "from a checkpoint."
        )
        return lambda state: (absent,)
    if experiment.learner == "vqgan":
        from cm3jax.learners.vqgan import VQGANLearner
        from cm3jax.report.samples import vqgan_samples

        assert isinstance(learner, VQGANLearner)
        return vqgan_samples.vqgan_illustrator(learner)
    from cm3jax.learners.decoder import DecoderLearner
    from cm3jax.report.samples import decoder_samples

    assert isinstance(learner, DecoderLearner)
    return decoder_samples.decoder_illustrator(learner)


if __name__ == "__main__":
    keep_freed_memory()
    main(run)
