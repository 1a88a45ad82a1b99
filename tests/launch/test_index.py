import dataclasses
import json

import numpy as np
import PIL.Image
import pytest

from cm3jax import testing
from cm3jax.config import DataConfig, RetrievalConfig, TokenizersConfig
from cm3jax.errors import UserError
from cm3jax.retrieval.bank import Bank
from launch import index


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """The tiny chain of runs, and a folder of 60 pictures to make its bank of."""
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


def test_build_audit_query_remove(experiment, capsys):
    index.build(experiment)
    bank = Bank.open(experiment.data.bank)
    assert f"{len(bank)} documents, ExactIndex" in capsys.readouterr().out

    report = index.audit_report(experiment)
    assert f"documents       {len(bank)}: {len(bank)} pairs, 0 pictures, 0 texts" in report
    assert "self-retrieval  1.0000" in report
    assert report.count("recall@10 1.0000") == 2
    assert "licences        59 CC0-1.0" in report

    first = bank.meta(0)
    picture = f"<image:{experiment.data.source}/{first.key}>"
    for prompt in (f"{first.text} {picture}", picture):
        lines = index.query(experiment, prompt).splitlines()
        assert len(lines) == 3
    assert index.query(experiment, f"{first.text} {picture}").split()[1] == first.key

    index.remove(experiment, [first.key])
    assert f"removed 1 documents, {len(bank) - 1} are left" in capsys.readouterr().out
    assert first.key not in index.query(experiment, f"{first.text} {picture}")


def test_a_saved_index_is_used(experiment, tmp_path):
    scann = dataclasses.replace(
        experiment,
        retrieval=dataclasses.replace(experiment.retrieval, index="scann"),
        data=dataclasses.replace(experiment.data, bank=str(tmp_path / "bank")),
    )
    index.build(scann)
    assert (tmp_path / "bank" / "scann" / "index.json").exists()
    assert index.audit_report(scann).count("recall@10 1.0000") == 2
    vectors = np.load(tmp_path / "bank" / "vectors.npy")
    np.save(tmp_path / "bank" / "vectors.npy", -vectors)
    with pytest.raises(UserError, match=r"vectors\.npy is damaged"):
        index.audit_report(scann)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["find", "quickstart"], "there is no 'find' of an index; there are build, audit, query"),
        (["query", "quickstart"], "launch.index query takes a prompt, in quotes"),
        (["query", "quickstart", "two", "words"], "takes a prompt, in quotes"),
        (["remove", "quickstart"], "takes the keys of documents"),
        (["build", "quickstart", "what"], "launch.index build takes no words"),
        (["audit", "quickstart", "--data.bank", ""], "data.bank is empty"),
        (["audit", "quikstart"], "did you mean quickstart"),
        (["audit"], "the first argument is the experiment's name"),
    ],
)
def test_a_mistake_is_one_sentence(argv, said):
    with pytest.raises(UserError) as caught:
        index.run(argv)
    assert said in str(caught.value)


def test_a_prompt_of_marks_alone_is_refused(experiment):
    index.build(experiment)
    with pytest.raises(UserError, match="neither a text nor a picture"):
        index.query(experiment, "<mask>")
