"""From a command line to an `Experiment` or to a command's own options.

Every field of a config dataclass is an option, `--optim.peak-lr 3e-4`; its docstring is its help.
tyro parses and documents; what it prints about a mistake, a box of several lines, becomes one
sentence here.
"""

import codecs
import contextlib
import dataclasses
import functools
import io
import itertools
import os
import re
import sys
import textwrap
import typing
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, NoReturn, TypeVar, overload

import tyro

from cm3jax.config import Experiment
from cm3jax.config.curriculum import REPLACES
from cm3jax.errors import UserError, nearest
from cm3jax.io.paths import require_supported
from cm3jax.presets import experiment_names, load_experiment
from launch.help_text import examples, tidy

Options = TypeVar("Options")


def parse_experiment(argv: Sequence[str], description: str) -> Experiment:
    """The experiment that `argv` names, with the fields that its options override.

    `argv` is `EXPERIMENT --train.steps 40 --optim.peak-lr 3e-4 ...`. `--help` by itself lists the
    experiments; after a name it explains every option and shows the experiment's values.
    """
    return parse_experiment_and(NoOptions, argv, description)[0]


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """A command without options of its own."""


def parse_experiment_and(
    options: type[Options], argv: Sequence[str], description: str, subcommand: str = ""
) -> tuple[Experiment, Options]:
    """As `parse_experiment`, for a command that has options of its own, `--json` or `--out FILE`.

    `options` is a dataclass; its fields must have defaults and other names than an experiment's.
    `subcommand` is the word that came before `argv`, for `--help`.
    """
    if argv and argv[0] in ("-h", "--help"):
        show_overview(description, f"{subcommand} EXPERIMENT".lstrip())
    if not argv or argv[0].startswith("-"):
        raise UserError(
            f"the first argument is the experiment's name; give one of "
            f"{', '.join(experiment_names())}."
        )
    bare = tyro.conf.arg(name="")  # both kinds of options are side by side, without a prefix
    both = dataclasses.make_dataclass(
        "Command",
        [("own", Annotated[options, bare]), ("experiment", Annotated[Experiment, bare])],
        frozen=True,
    )
    given = {_option(token) for token in argv[1:]}
    default = both(options(), _in_all_stages(load_experiment(argv[0]), given))
    program = " ".join(filter(None, [_program(), subcommand, argv[0]]))
    parsed = parse(both, argv[1:], description, default, program)
    return parsed.experiment, parsed.own


def overruled_columns(given: Container[str]) -> list[str]:
    """The columns of a curriculum that give way to options on the command line.

    `given` holds the names of the options, `--retrieval.documents`, as tyro spells them.
    """
    columns = []
    for field, column in REPLACES.items():
        part, _, name = field.replace("_", "-").partition(".")
        spelled = f"--{part}.{name}" in given or f"--{part}.no-{name}" in given
        if spelled and _option(f"--curriculum.{column}") not in given:
            columns.append(column)
    return columns


def _in_all_stages(experiment: Experiment, given: Container[str]) -> Experiment:
    """The experiment without the columns of its curriculum that would overrule a given option."""
    gone: dict[str, Any] = dict.fromkeys(overruled_columns(given), ())
    return dataclasses.replace(
        experiment, curriculum=dataclasses.replace(experiment.curriculum, **gone)
    )


def show_overview(description: str, words: str = "EXPERIMENT") -> NoReturn:
    """Print what a command does, and the experiments; `words` are those before its options."""
    print(f"usage: {_program()} {words} [OPTIONS]\n\n{textwrap.fill(description, 100)}\n")
    print(_examples(_program()) + "experiments:")
    print("\n".join(f"  {name}" for name in experiment_names()))
    print(f"\n{_program()} {words} --help explains every option.")
    sys.exit(0)


@overload
def parse(
    options: type[Options],
    argv: Sequence[str],
    description: str,
    default: Options | None = None,
    program: str | None = None,
) -> Options: ...


@overload
def parse(options: UnionType, argv: Sequence[str], description: str) -> Any: ...


def parse(
    options: Any,
    argv: Sequence[str],
    description: str,
    default: Any = None,
    program: str | None = None,
) -> Any:
    """Parse `argv` into the dataclass `options` (or a union of them: one subcommand each).

    Fields are options, or positional arguments where they are `tyro.conf.Positional`. Raises
    `UserError` for an unknown option (with the nearest valid one) and for a value that its field
    does not take.
    """
    known = dict(_option_types(options))
    _require_subcommand(options, argv, program or _program())
    for token in argv:
        name = _option(token)
        if name.startswith("--") and name not in {"--help", *known}:
            raise UserError(f"there is no option {name}{nearest(name, known)}; --help lists all.")
    for before, token in itertools.pairwise(["", *argv]):
        option, _, value = token.partition("=") if token.startswith("--") else (before, "", token)
        if not value.startswith("tfds:") and not re.search(r"\s", value):
            require_supported(value, option if option.startswith("--") else "an argument")
    call = functools.partial(
        tyro.cli, options, args=argv, prog=program or _program(), description=description
    )
    if default is not None:
        call = functools.partial(call, default=default)
    if {"-h", "--help"} & set(argv):
        # A field of `float | None` is shown as FLOAT.
        words = itertools.takewhile(lambda word: not word.startswith("-"), argv)
        shown = " ".join([program or _program(), *words])
        _show_help(functools.partial(call, config=(tyro.conf.DisallowNone,)), shown)
    try:
        return _quietly(call)
    except _Rejected as rejected:
        raise UserError(_sentence(str(rejected), argv, known)) from None


def _require_subcommand(options: Any, argv: Sequence[str], program: str) -> None:
    """Refuse a first word that names none of the subcommands, if `options` is a union of them."""
    names = [_subcommand(member) for member in typing.get_args(options)]
    if not names or {"-h", "--help"} & set(argv[:1]) or (argv and argv[0] in names):
        return
    what = f"has no {argv[0]!r}{nearest(argv[0], names)}" if argv else "needs to know what to do"
    raise UserError(f"{program} {what}; give one of {', '.join(names)}.")


def _subcommand(member: Any) -> str:
    named = [note.name for note in getattr(member, "__metadata__", ()) if hasattr(note, "name")]
    return named[0] if named else member.__name__.lower()


def _program() -> str:
    return f"python -m launch.{Path(sys.argv[0]).stem}"


def _option(token: str) -> str:
    """The option of `--name=value` or `--name`, as tyro spells it."""
    return token.partition("=")[0].replace("_", "-")


def _option_types(options: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every option of a dataclass with its type, nested ones dotted."""
    for member in typing.get_args(options):  # a union, Optional or Annotated
        yield from _option_types(member, prefix)
    if not (isinstance(options, type) and dataclasses.is_dataclass(options)):
        return
    hints = typing.get_type_hints(options, include_extras=True)
    for field in dataclasses.fields(options):
        name, hint = field.name.replace("_", "-"), hints[field.name]
        bare = any(getattr(note, "name", None) == "" for note in typing.get_args(hint))
        nested = list(_option_types(hint, prefix if bare else f"{prefix}{name}."))
        yield from nested or [(f"--{prefix}{name}", hint)]
        if hint is bool:
            yield f"--{prefix}no-{name}", hint


def _show_help(call: Callable[[], Any], command: str) -> NoReturn:
    """Print the help that `call` makes, with examples of the command, and exit."""
    # tyro draws its boxes only where the output's encoding is called utf-8.
    page = io.TextIOWrapper(io.BytesIO(), codecs.lookup(sys.stdout.encoding or "utf-8").name)
    with contextlib.redirect_stdout(page), contextlib.suppress(SystemExit):
        call()
    page.seek(0)
    print(f"{tidy(page.read())}\n{_examples(command)}".rstrip())
    sys.exit(0)


def _examples(command: str) -> str:
    """The examples of a command in the docstring of the module that runs."""
    shown = examples(sys.modules["__main__"].__doc__, command)
    return f"{shown}\n" if shown else ""


class _Rejected(Exception):
    """What tyro said when it refused the arguments, on one line."""


def _quietly(call: Callable[[], Options]) -> Options:
    """Run tyro with its error box caught; raise `_Rejected` with the box's first part.

    tyro has no public error object, so its text is read; another layout of the box would cost
    beauty, not the exit code.
    """
    # tyro draws its box with other characters where the standard output is not of UTF-8.
    box = io.TextIOWrapper(io.BytesIO(), "utf-8")
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "9999"  # or tyro would break lines, and words with them
    try:
        with contextlib.redirect_stdout(box), contextlib.redirect_stderr(box):
            return call()
    except SystemExit:
        box.seek(0)
        first = re.split(r"─{3,}\s*│|╰", re.sub(r"╭.*╮", "", box.read()))[0]
        raise _Rejected(" ".join(first.replace("│", " ").split())) from None
    finally:
        del os.environ["COLUMNS"]
        if columns is not None:
            os.environ["COLUMNS"] = columns


def _sentence(text: str, argv: Sequence[str], types: dict[str, Any]) -> str:
    """One sentence for tyro's text: a wrong type by our words, a config's own check by its own."""
    if missing := re.match(r"Missing from (.+?): (.+)", text):
        needed = re.findall(r"(\S+)(?: [A-Z]+)? (\S.*?)\.? \(required\)", missing[2])
        if needed:
            named = " and ".join(f"{name} ({what})" for name, what in needed)
            return f"{missing[1]} needs {named}."
    if extra := re.match(r"Unrecognized options: (.+)", text):
        return (
            f"{extra[1]} belongs to no option; a text of several words needs quotes, and --help "
            "lists all options."
        )
    wrong = re.match(r"Error parsing (--[\w.-]+):", text)
    if wrong is None or wrong[1] not in types:
        return re.sub(r"^Error parsing [\w.]+: ", "", text)
    option, hint = wrong[1], types[wrong[1]]
    start = [_option(token) for token in argv].index(option)
    values = argv[start].partition("=")[2:] if "=" in argv[start] else argv[start + 1 :]
    given = itertools.takewhile(lambda value: not value.startswith("--"), values)
    kind = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else hint
    return f"{option} takes {kind}, not {' '.join(given)!r}."
