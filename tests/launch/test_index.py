import dataclasses
import json
import re
import shutil

import numpy as np
import PIL.Image
import pytest

from cm3jax import testing
from cm3jax.config import DataConfig, RetrievalConfig, TokenizersConfig
from cm3jax.errors import UserError
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.index import open_index
from cm3jax.retrieval.removed import Removed
from launch import index
from tests.pages import require_sound


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """The tiny chain of runs, and a folder of 60 images to make its bank of."""
    path = tmp_path_factory.mktemp("index")
    testing.write_chain(path)
    folder = path / "folder"
    folder.mkdir()
    lines = []
    for i, picture in enumerate(testing.pictures(60)):
        PIL.Image.fromarray(picture).save(folder / f"{i}.png")
        caption = f"{testing.CAPTIONS[i % 4]} {i}"
        lines.append(json.dumps({"file": f"{i}.png", "caption": caption, "licence": "CC0-1.0"}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return dataclasses.replace(
        testing.experiment(),
        tokenizers=TokenizersConfig(text=str(path / "text"), image=str(path / "vqgan")),
        retrieval=RetrievalConfig(encoder=str(path / "clip"), documents=3, diversity_cut=1.1),
        data=DataConfig(source=str(folder), bank=str(path / "new"), image_size=16),
    )


def test_build_audit_query_remove(experiment, tmp_path, capsys):
    index.build(experiment)
    bank = Bank.open(experiment.data.bank)
    assert f"{len(bank)} documents, ExactIndex" in capsys.readouterr().out

    audited = index.audit_bank(experiment)
    report = audited.text
    assert f"documents       {len(bank)}: {len(bank)} pairs, 0 images, 0 texts" in report
    assert "self-retrieval  1.0000" in report
    assert report.count("recall@10 1.0000") == 3
    assert "licences        59 CC0-1.0" in report
    assert "dead shards     none" in report
    assert report.count("of 1 single queries") == 3
    require_sound(audited.page)
    # The one pair that asks, before each of three rows of four documents, all drawn.
    assert audited.page.count("<img") == 3 * (1 + 4)
    assert "by both" in audited.page
    assert "by image" in report
    assert "picture" not in report + re.sub(r"data:[^\"]*", "", audited.page)

    first = next(d for d in bank.documents() if f"<small>{d.key}</small>" in audited.page)
    picture = f"<image:{experiment.data.source}/{first.key}>"
    for prompt in (f"{first.text} {picture}", picture):
        lines = index.query(experiment, prompt).splitlines()
        assert len(lines) == 3
    assert index.query(experiment, f"{first.text} {picture}").split()[1] == first.key

    page = tmp_path / "pages" / "audit.html"
    page.parent.mkdir()
    page.write_text(audited.page)
    found = audited.page.count(f"<small>{first.key}</small>")
    index.remove(experiment, Removed(keys=(first.key,)), [str(page.parent)])
    said = capsys.readouterr().out
    assert f"removed 1 documents, {len(bank) - 1} are left" in said
    assert f"{page}: {found} place" in said
    require_sound(page.read_text())
    assert f"<small>{first.key}</small>" not in page.read_text()
    assert page.read_text().count("<img") == 3 * (1 + 4) - found
    assert first.key not in index.query(experiment, f"{first.text} {picture}").split()
    index.verify(experiment)
    assert "files are as they were written" in capsys.readouterr().out


def test_help_says_that_the_command_comes_first(capsys):
    with pytest.raises(SystemExit):
        index.run(["--help"])
    assert " COMMAND EXPERIMENT [OPTIONS]\n" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        index.run(["audit", "--help"])
    assert " audit EXPERIMENT [OPTIONS]\n" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        index.run(["audit", "quickstart", "--help"])
    assert " audit quickstart [-h]" in capsys.readouterr().out.splitlines()[0]


def test_what_was_removed_does_not_come_back_by_merging(experiment, tmp_path, capsys):
    """Neither from a copy of the bank nor from a saved index."""
    data = dataclasses.replace(experiment.data, bank=str(tmp_path / "bank"))
    config = dataclasses.replace(experiment, data=data)
    index.build(config)
    whole = Bank.open(data.bank)
    shutil.copytree(data.bank, tmp_path / "copy")
    gone = [whole.meta(row).key for row in (3, 17)]
    index.remove(config, Removed(keys=tuple(gone)))
    index.merge(config, [str(tmp_path / "copy")])
    assert "57 documents, 0 of them new" in capsys.readouterr().out
    for kind in ("exact", "scann"):
        retrieval = dataclasses.replace(config.retrieval, index=kind)
        index.build(dataclasses.replace(config, retrieval=retrieval))
        merged = Bank.open(data.bank)
        found = open_index(merged, kind).search(np.asarray(whole.vectors), len(whole))
        keys = {merged.meta(int(row)).key for row in np.unique(found.ids)}
        assert len(keys) == 57
        assert not keys & set(gone)
        assert ("scann" in {path.name for path in merged.path.iterdir()}) == (kind == "scann")


def test_a_saved_index_is_used(experiment, tmp_path):
    scann = dataclasses.replace(
        experiment,
        retrieval=dataclasses.replace(experiment.retrieval, index="scann"),
        data=dataclasses.replace(experiment.data, bank=str(tmp_path / "bank")),
    )
    index.build(scann)
    assert (tmp_path / "bank" / "scann" / "00000" / "index.json").exists()
    assert index.audit_bank(scann).text.count("recall@10 1.0000") == 3
    vectors = np.load(tmp_path / "bank" / "vectors.npy")
    np.save(tmp_path / "bank" / "vectors.npy", -vectors)
    with pytest.raises(UserError, match=r"vectors\.npy is damaged"):
        index.audit_bank(scann)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["find", "quickstart"], "there is no 'find' of an index; there are build, audit, query"),
        (["query", "quickstart"], "launch.index query takes a prompt, in quotes"),
        (["query", "quickstart", "two", "words"], "takes a prompt, in quotes"),
        (["remove", "quickstart"], "takes the keys of documents, or --source or --licence"),
        (["merge", "quickstart"], "takes the paths of other banks"),
        (["build", "quickstart", "--licence", "MIT"], "does not take the options of remove"),
        (["build", "quickstart", "--pages", "x"], "does not take the options of remove"),
        (["remove", "quickstart", "k", "--pages", "nowhere"], "--pages nowhere is no folder here"),
        (["query", "quickstart", "x", "--out", "y"], "does not take the options of audit"),
        (["build", "quickstart", "what"], "launch.index build takes no words"),
        (["audit", "quickstart", "--data.bank", ""], "data.bank is empty"),
        (["audit", "quikstart"], "did you mean quickstart"),
        (["audit"], "the first argument is the experiment's name"),
    ],
)
def test_a_mistake_raises_user_error(argv, said):
    with pytest.raises(UserError) as caught:
        index.run(argv)
    assert said in str(caught.value)


def test_a_prompt_of_only_marks_is_refused(experiment):
    index.build(experiment)
    with pytest.raises(UserError, match="neither a text nor an image"):
        index.query(experiment, "<mask>")
