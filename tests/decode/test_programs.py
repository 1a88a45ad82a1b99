import dataclasses

import numpy as np
import pytest
from etils import epath

from cm3jax.decode import programs
from cm3jax.decode.loop import decode
from tests.decode.test_loop import (  # noqa: F401
    GREEDY,
    MODEL,
    VOCAB,
    read,
    text_request,
    variables,
)


@pytest.mark.slow  # it compiles a program twice, and who comes next compiles again, too
def test_programs_are_forgotten_where_there_are_many_and_compiled_again(read):  # noqa: F811
    config = dataclasses.replace(GREEDY, batch=2)
    (before,) = decode(MODEL, read, VOCAB, [text_request(0, 5)], config)
    mapped = programs.mappings()
    assert not programs.forget_if_many()
    assert programs.kept_programs()
    assert programs.forget_if_many(most=0)
    assert programs.kept_programs() == 0
    assert programs.mappings() < mapped
    (after,) = decode(MODEL, read, VOCAB, [text_request(0, 5)], config)
    np.testing.assert_array_equal(after[0].ids, before[0].ids)
    assert programs.forget_if_many(share=0.0), "whatever their number, for the mappings they take"
    assert programs.kept_programs() == 0


def test_a_system_that_tells_no_mappings_forgets_nothing_for_them(monkeypatch, tmp_path):
    """Files that are missing, or that may not be read: a folder can't be, even by root."""
    for path in (tmp_path / "missing", tmp_path):
        monkeypatch.setattr(programs, "_MAPPINGS", epath.Path(path))
        monkeypatch.setattr(programs, "_LIMIT", epath.Path(path))
        assert programs.mappings() == 0
        assert not programs.forget_if_many(most=programs.kept_programs(), share=0.5)
