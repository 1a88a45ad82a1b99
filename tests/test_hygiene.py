"""Tripwires over the whole repository: imports, layers, paths, dependencies."""

import ast
import collections
import importlib
import itertools
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("cm3jax", "launch", "experiments")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# Parts of `cm3jax`, lowest first: a module imports from its own line and from those above it. The
# longest name that fits a module counts.
LAYERS = (
    "errors shapes config io.texts io.paths",
    "io report.html report.plots targets hlo training.hardware presets",
    "sequence tokenizers partition training.program_cache",
    "model",
    "retrieval tasks",
    "emblems emoji data",
    "training checkpoint report.run_page",
    "learners testing interop",
    "train decode",
    "memory",
    "abstract compiled compiled_decoding",
    "generation",
    "evaluate report",
    "serve",
)
RANK = {part: rank for rank, line in enumerate(LAYERS) for part in line.split()}
# What the three modules of the model may know: they are of use without data, retrieval or learners.
MODEL_KNOWS = {"config", "errors", "model", "partition", "sequence", "shapes", "tokenizers"}


def rank(module: str) -> int:
    """The line of a part of `cm3jax`, given without the package's name; the last one for it."""
    parts = module.split(".")
    names = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
    return next((RANK[name] for name in names if name in RANK), len(LAYERS))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(module: str, source: str) -> set[str]:
    """Every module that the source of `module` imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # The presets have two homes, `experiments` and an installed `cm3jax.experiments`.
            assert node.level == 0 or module.startswith("experiments."), "imports are absolute"
            above = module.split(".")[: -node.level] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            # `from cm3jax import partition` names a module, `from cm3jax.io.files import digest`
            # none.
            names |= {f"{origin}.{alias.name}" for alias in node.names}
    return names


def upward_imports(module: str, source: str) -> list[str]:
    """The imports of `module` that point against the order of `LAYERS`."""
    wrong = []
    package, _, rest = module.partition(".")
    for target in imported_modules(module, source):
        to_package, _, to_rest = target.partition(".")
        if to_package not in PACKAGES or package == "launch":
            continue
        if package == "experiments":
            # Presets are configs; scores and claims use the whole library.
            preset = not re.match(r"claims|miniature\.scores|emoji\.emoji_scores", rest)
            allowed = to_package == "experiments" or not preset or "cm3jax.config" in target
        elif to_package != "cm3jax":
            allowed = False
        else:
            # The package itself offers its version to all and takes `load` from anywhere below.
            allowed = not to_rest or rank(to_rest) <= rank(rest)
            if rest.split(".")[0] == "model" and to_rest:
                allowed = allowed and to_rest.split(".")[0] in MODEL_KNOWS
        if not allowed:
            wrong.append(f"{module} imports {target}")
    return sorted(wrong)


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_every_module_imports(path):
    importlib.import_module(module_name(path))


def test_imports_point_one_way():
    wrong = [w for path in SOURCES for w in upward_imports(module_name(path), path.read_text())]
    assert not wrong, "\n".join(wrong)


def test_presets_import_each_other_relatively():
    """An installed library has `cm3jax.experiments`, a checkout `experiments`, which mypy reads."""
    parts = re.compile(r"experiments\.(claims|miniature\.scores|emoji\.emoji_scores)\b")
    presets = [p for p in (ROOT / "experiments").rglob("*.py") if not parts.match(module_name(p))]
    wrong = re.compile(r"^ *(from|import) (cm3jax\.)?experiments\b", re.MULTILINE)
    assert [str(path) for path in presets if wrong.search(path.read_text())] == []


def test_architecture_draws_these_layers():
    page = (ROOT / "ARCHITECTURE.md").read_text()
    picture = re.search(r"^```\ncm3jax/\n((?:  \S.*\n)+)", page, re.MULTILINE)[1]
    drawn = [sorted(re.split(r" {2,}", line.strip())[0].split()) for line in picture.splitlines()]
    assert drawn == [sorted(re.findall(r"(?<!\S)\w+(?!\S)", line)) for line in LAYERS]
    lower = {part for line in LAYERS for part in line.split() if "." in part}
    assert all(f"`{part.replace('.', '/')}.py`" in page for part in lower)


def test_the_layer_check_sees_lazy_and_upward_imports():
    lazy = "def f():\n    from cm3jax.train import train\n"
    assert upward_imports("cm3jax.model.decoder", lazy) == [
        "cm3jax.model.decoder imports cm3jax.train.train"
    ]
    assert upward_imports("cm3jax.io.files", "from launch import cli")
    assert upward_imports("cm3jax.sequence.vocab", "from cm3jax import document")
    assert upward_imports("cm3jax.presets", "from experiments import quickstart")
    assert upward_imports("experiments.cm3", "from cm3jax.model import decoder")
    assert not upward_imports("experiments.cm3", "from . import ra_cm3")
    assert imported_modules("experiments.miniature.sft", "from ..delta import with_delta") == {
        "experiments.delta.with_delta"
    }
    assert not upward_imports("cm3jax.train", "from cm3jax import checkpoint\nimport cm3jax")


def test_no_modules_import_each_other_in_a_circle():
    modules = {module_name(path): path for path in SOURCES}
    waiting = {
        name: {
            other
            for target in imported_modules(name, path.read_text())
            for other in (target, target.rpartition(".")[0])
            if other in modules and other not in (name, name.partition(".")[0])
        }
        for name, path in modules.items()
    }
    # A package's __init__ gathers its own modules; they do not need it.
    for name in waiting:
        waiting[name] -= {other for other in waiting[name] if name.startswith(f"{other}.")}
    while free := [name for name, needs in waiting.items() if not needs & waiting.keys()]:
        for name in free:
            del waiting[name]
    assert not waiting


def array_dataclasses_with_equality(source: str) -> list[str]:
    """Dataclasses with a field of arrays whose `==` would compare the fields.

    Arrays have no truth value: since Python 3.13 such a comparison raises even for one object.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ClassDef):
            continue
        decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
        made = [text for text in decorators if re.match(r"(\w+\.)?dataclass\b", text)]
        hints = [ast.unparse(f.annotation) for f in node.body if isinstance(f, ast.AnnAssign)]
        held = [hint for hint in hints if not hint.startswith("Callable")]
        if any(re.search(r"ndarray|Array\b", hint) for hint in held):
            found += [node.name for text in made if "eq=False" not in text]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_dataclasses_of_arrays_do_not_compare_them(path):
    assert array_dataclasses_with_equality(path.read_text()) == []


def test_the_check_of_dataclasses_sees_arrays():
    head = "@dataclasses.dataclass(frozen=True)\nclass A:\n"
    assert array_dataclasses_with_equality(f"{head}    x: Int[np.ndarray, 'B']") == ["A"]
    assert array_dataclasses_with_equality(f"{head}    x: int") == []
    mute = head.replace("True", "True, eq=False")
    assert array_dataclasses_with_equality(f"{mute}    x: dict[str, Array]") == []


def test_every_folder_of_tests_is_a_package():
    folders = {path.parent for path in (ROOT / "tests").rglob("test_*.py")}
    # Without it two test files of one name, in two folders, are one module to pytest.
    assert all((folder / "__init__.py").is_file() for folder in folders)


def test_no_file_names_a_machine():
    machine = re.compile(r"(?<![\w.~$}])/(work|root|home|tmp|Users)/")
    # In a worktree of git's `.git` is a file with a path of this machine, and not the project's.
    files = [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]
    for folder in (*PACKAGES, "tests", "docs", ".ci"):
        files += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    texts = {".py", ".sh", ".md", ".ipynb", ".toml", ".txt", ".lock", ".json", ".html", ""}
    named = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in files
        if path.suffix in texts
        for line in path.read_text().splitlines()
        if machine.search(line)
    ]
    assert not named, "\n".join(named)


def test_no_file_names_notes_from_outside_the_repository():
    outside = re.compile(r"\b(DESIG[N]|FACT[S]|HOUS[E])\b")
    folders = (*PACKAGES, "tests", "docs")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    files += [*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")]
    assert not [str(path) for path in files if outside.search(path.read_text())]


def test_the_lock_covers_what_setup_asks_for():
    assigned = {
        node.targets[0].id: node.value
        for node in ast.parse((ROOT / "setup.py").read_text()).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List | ast.Dict)
    }
    extras = ast.literal_eval(assigned["EXTRAS"])
    del extras["parity"]  # torch's builds differ by machine
    wanted = [*ast.literal_eval(assigned["REQUIRES"]), *itertools.chain(*extras.values())]
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock, "a lock with addresses installs from nowhere else"
    pinned = [Requirement(line) for line in lock.splitlines() if re.match(r"\w", line)]
    for requirement in map(Requirement, wanted):
        name = requirement.name.replace("_", "-").lower()
        versions = [str(pin.specifier).removeprefix("==") for pin in pinned if pin.name == name]
        assert versions, f"{name} is not locked; make the lock again, its first lines say how"
        assert all(v in requirement.specifier for v in versions), f"{requirement}: {versions}"


TWINS = {
    "load": "`cm3jax.load` is the generator's; each learner has its own",
    "convert": "one for each foreign format in `interop`",
}
"""Public names with a definition in several modules, which callers qualify by the module's name."""


def public_names(source: str) -> set[str]:
    """The functions, classes and names of types that a module defines and does not hide."""
    defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    body = ast.parse(source).body
    names = {node.name for node in body if isinstance(node, defined)}
    for node in body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            made = node.value is None or isinstance(node.value, ast.Call)  # `TypeVar("Item")`
            words = [each.id for each in targets if isinstance(each, ast.Name)]
            names |= {word for word in words if re.fullmatch(r"[A-Z]+[a-z]\w*", word) and not made}
    return {name for name in names if not name.startswith("_")}


def test_public_names_are_those_of_functions_classes_and_types():
    source = "def f(): ...\nclass A: ...\nPart = str | A\nT = TypeVar('T')\nMOST = 3\n_Own = int\n"
    assert public_names(source) == {"f", "A", "Part"}


def test_a_public_name_has_one_meaning():
    homes = collections.defaultdict(list)
    for path in (ROOT / "cm3jax").rglob("*.py"):
        for name in public_names(path.read_text()):
            homes[name].append(module_name(path))
    twice = {name: found for name, found in homes.items() if len(found) > 1 and name not in TWINS}
    assert not twice, "give one of them another name, and the CHANGELOG a line"
    assert {name for name, found in homes.items() if len(found) > 1} >= TWINS.keys()


def test_docstrings_name_their_subject():
    """A docstring that begins with "Of" leaves out what it is about."""
    found = [
        f"{module_name(path)}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and str(node.value.value).startswith("Of ")
    ]
    assert not found, found


def test_names_of_tests_begin_with_their_subject():
    files = (ROOT / "tests").rglob("test_*.py")
    names = [name for path in files for name in re.findall(r"def (test_\w+)", path.read_text())]
    assert names
    assert [name for name in names if name.startswith("test_of_")] == []


def whole_experiments(source: str) -> list[str]:
    """The functions of a source that take an `Experiment` whole, once per parameter."""
    return [
        function.name
        for function in ast.walk(ast.parse(source))
        if isinstance(function, ast.FunctionDef)
        for argument in (*function.args.args, *function.args.kwonlyargs)
        if argument.annotation and ast.unparse(argument.annotation).strip("'\"") == "Experiment"
    ]


def test_functions_take_the_part_of_the_config_that_they_read():
    """Who takes a whole experiment may read any field of it: only entry points should.

    Lower the bound when there are fewer; a new one takes the sub-configs that it reads.
    """
    assert whole_experiments("def f(a, b: Experiment, *, c: 'Experiment'): ...") == ["f", "f"]
    library = (path for path in SOURCES if path.is_relative_to(ROOT / "cm3jax"))
    found = [name for path in library for name in whole_experiments(path.read_text())]
    assert len(found) <= 20, found


def test_library_files_have_one_subject():
    """A file of more than 400 lines changes for several reasons: split it by them."""
    library = (path for path in SOURCES if path.is_relative_to(ROOT / "cm3jax"))
    lengths = {module_name(path): path.read_text().count("\n") for path in library}
    assert not {name: length for name, length in lengths.items() if length > 400}
