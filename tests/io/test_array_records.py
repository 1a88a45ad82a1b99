"""Records of documents, of which a corpus and a bank are made. Files of them: test_bank.py."""

import numpy as np

from cm3jax.io.array_records import pack_document, packed_ids, unpack_document


def test_a_packed_document_is_read_back_and_its_bytes_stay():
    record = pack_document(np.array([3, 1]), {"key": "fähre", "subjects": ("a", "b")})
    assert record[:12] == bytes([2, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0])
    assert record[12:].decode() == '{"key":"fähre","subjects":["a","b"]}'
    rest = unpack_document(record)
    assert rest.pop("ids").tolist() == packed_ids(record).tolist() == [3, 1]
    assert rest == {"key": "fähre", "subjects": ("a", "b")}
