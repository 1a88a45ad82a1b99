"""The routes, asked by OpenAI's own client and by plain HTTP over loopback."""

import asyncio
import base64
import dataclasses
import io
import json
import re
import socket
import threading
import time

import httpx
import numpy as np
import openai
import PIL.Image
import pytest

from cm3jax import testing
from cm3jax.decode import loop
from cm3jax.decode.prefix_cache import Known
from cm3jax.errors import UserError
from cm3jax.generation.options import Sampling
from cm3jax.generation.prompts import picture_prompt
from cm3jax.io.folders import hold
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.milvus import Unanswered
from cm3jax.retrieval.removed import Removed
from cm3jax.retrieval.takedown import merge
from cm3jax.serve import replies, streams, studio
from cm3jax.serve.attributing import Attribution
from cm3jax.serve.engine import Busy, DrawingEngine
from cm3jax.serve.guard import described
from cm3jax.serve.limits import Limits
from cm3jax.serve.protocol import ChatBody, ImageBody
from cm3jax.serve.studio import Session
from tests.serve.conftest import WEIGHTS, client_of, serving

PROMPT = "a red fox"


def png(pixels):
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def shown(pixels):
    url = f"data:image/png;base64,{base64.b64encode(png(pixels)).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def pixels(content):
    return np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(content))))


@pytest.fixture(scope="module")
def picture():
    return testing.pictures(1, seed=3)[0]


def test_pictures_are_those_of_the_generator(client, generator):
    """Whatever else is drawn at the time: other seeds, guidance and filters."""
    asked = [
        {"seed": 5, "guidance": 3.0},
        {"seed": 6, "guidance": 2.0, "temperature": 0.5},
        {"seed": 8, "guidance": 3.0, "top_p": 0.5},
    ]
    answers: dict = {}

    def ask(place):
        more = asked[place]
        answers[place] = client.images.generate(prompt=PROMPT, n=2, extra_body=more)

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place, more in enumerate(asked):
        options = {"guidance_scale" if name == "guidance" else name: v for name, v in more.items()}
        (expected,) = generator.sample([picture_prompt(PROMPT)], samples=2, **options)
        for own, other in zip(answers[place].data, expected, strict=True):
            assert own.codes == other.ids.tolist()
            np.testing.assert_array_equal(pixels(own.b64_json), other.image)
            assert own.seed == more["seed"]
            assert own.logprob == pytest.approx(other.logprob, abs=1e-3)


def test_an_answer_says_what_it_came_from(client, generator):
    given = [{"key": "tiny-3"}, {"text": "a blue fox"}]
    more = {"documents": given, "retrieve": 1, "exclude": ["tiny-1"], "weigh": {"tiny-0": 5}}
    answer = client.images.generate(prompt=PROMPT, extra_body={**more, "floor": -1})
    first, second, third = answer.data[0].documents
    assert first == {"key": "tiny-3", "score": None, "source": "tiny", "licence": "CC0-1.0"}
    assert second == {"given": 1}
    assert third["key"] == "tiny-0"
    assert third["score"] > 0
    assert answer.usage.output_tokens == generator.vocab.image_tokens
    assert 0 <= answer.data[0].seed < 2**32


def test_an_answer_says_what_each_document_did(client, server, generator):
    given = [{"key": "tiny-3"}, {"text": "a blue fox"}]
    more = {"documents": given, "seed": 3}
    plain = client.images.generate(prompt=PROMPT, n=2, extra_body=more).data
    events = client.images.generate(
        prompt=PROMPT, n=2, stream=True, extra_body={**more, "attribute": True}
    )
    done = {event.sample: event for event in events if event.type == "image_generation.completed"}
    question = server.studio.reader.picture(
        ImageBody(prompt=PROMPT, documents=given, seed=3)  # type: ignore[arg-type]
    )
    ((one, other),) = generator.sample(
        [picture_prompt(PROMPT)], [question.request.documents], samples=2, seed=3
    )
    for sample, whole in ((one, plain[0]), (other, plain[1])):
        event = done[sample.sample_id]
        assert event.codes == whole.codes
        for said, effect in zip(event.documents, generator.document_effects(sample), strict=True):
            assert said["log_probability"] == pytest.approx(effect.gain, abs=1e-3)
            assert said["copied_share"] == effect.copied
            np.testing.assert_allclose(np.ravel(said["heat"]), effect.gains, atol=1e-3)
    assert "heat" not in plain[0].documents[0]
    assert server.studio.engine.load["open"] == 0


def test_only_what_was_drawn_of_a_painted_picture_is_attributed(client, picture):
    mask = np.full((16, 16, 4), 255, np.uint8)
    mask[8:, :, 3] = 0
    more = {"documents": json.dumps([{"key": "tiny-3"}]), "attribute": True}
    files = {"image": png(picture), "mask": png(mask)}
    found = client.images.edit(**files, prompt="a fox", extra_body=more).data[0]
    (document,) = found.documents
    heat = np.asarray(document["heat"])
    assert (heat[0] == 0).all()
    assert (heat[1] != 0).all()
    assert document["log_probability"] == pytest.approx(heat.sum(), abs=1e-3)
    assert document["copied_share"] is None


def test_an_answer_of_a_chat_says_what_each_document_did(client, server, generator):
    """In one piece or streamed; the map over the image is an image's only."""
    more = {"task": "document", "documents": [{"key": "tiny-3"}], "seed": 3, "attribute": True}
    body = {"model": "tiny", "messages": [{"role": "user", "content": PROMPT}]}
    whole = client.chat.completions.create(**body, extra_body=more).choices[0]
    *_, last = client.chat.completions.create(**body, extra_body=more, stream=True)
    read = ChatBody(messages=body["messages"], **more)
    question = server.studio.reader.chat(read)
    (sample,) = [
        one
        for answers in generator.answer(
            [question.request], Sampling(seed=3, decode=question.config)
        )
        for _, one in answers
    ]
    (effect,) = generator.document_effects(sample)
    for (said,) in (whole.documents, last.choices[0].documents):
        assert said["log_probability"] == pytest.approx(effect.gain, abs=1e-3)
        assert (said["heat"], said["copied_share"]) == (None, None)


def test_closing_ends_the_measuring_of_documents(server, monkeypatch):
    """Between two passes, as between two chunks; others go on."""
    go, began = threading.Event(), threading.Event()
    step = Attribution.step

    def held(self):
        began.set()
        assert go.wait(60)
        return step(self)

    monkeypatch.setattr(Attribution, "step", held)
    body = {"prompt": PROMPT, "documents": [{"key": "tiny-3"}] * 2, "attribute": True}
    url = f"{server.url}/v1/images/generations"
    with httpx.stream("POST", url, json={**body, "stream": True}, timeout=60) as asked:
        assert asked.status_code == 200
        assert began.wait(60)
    go.set()
    deadline = time.monotonic() + 60
    while server.studio.engine.load["open"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.studio.engine.load["open"] == 0
    assert httpx.post(url, json={"prompt": PROMPT}, timeout=60).status_code == 200


def test_a_stream_ends_with_the_picture_of_a_plain_answer(client):
    whole = client.images.generate(prompt=PROMPT, n=2, extra_body={"seed": 3}).data
    events = list(client.images.generate(prompt=PROMPT, n=2, stream=True, extra_body={"seed": 3}))
    done = {event.sample: event for event in events if event.type == "image_generation.completed"}
    assert [done[number].b64_json for number in (0, 1)] == [one.b64_json for one in whole]


def test_the_manual_s_snippet_runs(shipped, tmp_path, monkeypatch):
    page = (WEIGHTS.parents[3] / "docs/server.md").read_text()
    snippet = re.search(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    with serving(shipped) as running:
        names = {}
        address = snippet.replace("http://127.0.0.1:8000", running.url)
        exec(compile(address, "docs/server.md", "exec"), names)
        names["client"].close()
    assert address != snippet
    with PIL.Image.open("circle.png") as image:
        assert image.size == (32, 32)
    assert names["found"].data[0].documents == []


def test_rows_reach_the_client_while_the_rest_is_drawn(shipped, monkeypatch):
    """Each chunk waits until the client has got the row before."""
    chunks, advance = threading.Semaphore(0), loop.Slots.advance

    def held(*args):
        assert chunks.acquire(timeout=60)
        return advance(*args)

    monkeypatch.setattr(loop.Slots, "advance", held)
    got = []
    with serving(shipped) as server, client_of(server) as client:
        chunks.release()
        for event in client.images.generate(
            prompt="a large red circle at b3 on sand", stream=True, extra_body={"seed": 1}
        ):
            got.append((event.type.split(".")[-1], getattr(event, "rows", None)))
            chunks.release()
    assert got == [("partial_image", row) for row in (1, 2, 3)] + [("completed", None)]


def test_an_unfinished_picture_is_its_whole_rows_on_grey(server, generator):
    body = ImageBody(prompt=PROMPT, seed=3, stream=True)
    question = server.studio.reader.picture(body)
    assert question.rows
    ((sample,),) = generator.sample([picture_prompt(PROMPT)], seed=3)

    async def look():
        session = Session(server.studio, question)
        assert session.rows(0) == 0
        session.drawing.emitted[0] = sample.ids[:3]  # a row of two codes, and a half
        return session.rows(0), await session.partial(0, np.asarray)

    rows, picture = asyncio.run(look())
    assert rows == 1
    assert (picture[8:] == 128).all()
    assert (picture[:8] != 128).any()


def test_the_pixels_outside_of_a_mask_stay(client, picture):
    mask = np.full((16, 16, 4), 255, np.uint8)
    mask[:8, :, 3] = 0
    found = client.images.edit(image=png(picture), mask=png(mask), prompt="a fox").data[0]
    drawn = pixels(found.b64_json)
    np.testing.assert_array_equal(drawn[8:], picture[8:])
    assert (drawn[:8] != picture[:8]).any()


@pytest.mark.slow
def test_an_edit_without_a_mask_is_the_editing_task(client, generator, picture):
    body = {"seed": 4, "guidance": json.dumps([2.0, 1.5])}
    found = client.images.edit(image=png(picture), prompt="make it blue", extra_body=body).data[0]
    ((expected,),) = generator.edit([picture], ["make it blue"], seed=4, edit_scales=(2.0, 1.5))
    assert found.codes == expected.ids.tolist()


def test_chats_are_captions_questions_and_documents(client, generator, picture):
    def ask(*content, **more):
        messages = [{"role": "user", "content": list(content)}]
        options = {"model": "tiny", "seed": 1, "max_tokens": 32, **more}
        return client.chat.completions.create(messages=messages, **options).choices[0].message

    ((caption,),) = generator.caption([picture], seed=1)
    assert ask(shown(picture)).content == caption.text
    question = {"type": "text", "text": "Which animal?"}
    answered = ask(question, shown(picture))
    assert isinstance(answered.content, str)
    masked = {"type": "text", "text": "Question: Which animal? Answer: <mask>. <infill>"}
    assert ask(masked, shown(picture)).content == answered.content
    story = ask({"type": "text", "text": "a fox"})
    assert [part["type"] for part in story.parts if part["type"] == "image_url"] == [
        "image_url" for _ in story.images
    ]
    assert story.parts


def test_a_text_fills_the_first_field_of_its_task(server, picture):
    def words(task, *content, **fields):
        messages = [{"role": "user", "content": list(content)}]
        body = {"messages": messages, "task": task, "fields": fields}
        request = server.studio.reader.chat(ChatBody.model_validate(body)).request
        return server.studio.generator.text_of(request.prefix)

    why = {"type": "text", "text": "why"}
    found = words("science", why, shown(picture), options="a, b")
    assert "Question: why" in found
    assert "Options: a, b" in found
    found = words("science", why, shown(picture), options="a, b", context="dark")
    assert found.index("Question: why") < found.index("Context: dark")
    for task, fields in (("science", {"options": "a", "image": "/etc/passwd"}), ("masks", {})):
        with pytest.raises(UserError, match=r"type image_url|no task 'masks'"):
            words(task, why, **fields)


def test_a_streamed_chat_is_the_plain_one_in_pieces(client, picture):
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": [shown(picture)]}],
        "extra_body": {"seed": 2},
    }
    whole = client.chat.completions.create(**body)
    usage = {"include_usage": True}
    chunks = list(client.chat.completions.create(**body, stream=True, stream_options=usage))
    told = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert told == whole.choices[0].message.content
    reason = whole.choices[0].finish_reason
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == reason
    shortest = client.chat.completions.create(**body, max_tokens=2)
    assert shortest.choices[0].finish_reason == "length"
    assert (
        list(client.chat.completions.create(**body, max_tokens=2, stream=True))[-1]
        .choices[0]
        .finish_reason
        == "length"
    )
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


def test_a_streamed_text_keeps_half_a_character_until_its_end():
    assert streams._added("a f", "a fo\ufffd") == ""
    assert streams._rest("a f", "a fo\ufffd") == "o\ufffd"


def test_pictures_of_a_request_are_decoded_together(client, server, generator, monkeypatch):
    """With little padding: the tokenizer of a training works on 64 at once."""
    image = server.studio.generator.image
    shapes, decode = [], image._decode
    monkeypatch.setattr(
        image, "_decode", lambda *args: shapes.append(args[1].shape) or decode(*args)
    )
    for samples in (1, 3):
        client.images.generate(prompt=PROMPT, n=samples)
    assert shapes == [(size, generator.vocab.image_tokens) for size in (1, 4)]


def test_queries_are_encoded_without_padding(client, server, generator, monkeypatch):
    encoder = server.studio.generator.encoder
    rows, text = [], encoder._text
    monkeypatch.setattr(encoder, "_text", lambda v, ids: rows.append(len(ids)) or text(v, ids))
    client.images.generate(prompt=PROMPT, extra_body={"retrieve": 1, "floor": -1})
    assert set(rows) == {1}
    assert generator.encoder.batch == 64


def test_a_mistake_is_answered_with_one_sentence(client, server):
    for status, body in (
        (404, {"prompt": PROMPT, "model": "other"}),
        (400, {"prompt": " "}),
        (400, {"prompt": PROMPT, "n": 99}),
        (400, {"prompt": PROMPT, "n": "many"}),
        (400, {"prompt": PROMPT, "size": "1024x1024"}),
        (400, {"prompt": PROMPT, "temperature": -1}),
        (400, {"prompt": PROMPT, "tempertaure": 1}),
        (400, {"prompt": PROMPT, "documents": [{"key": "nobody"}]}),
        (400, {"prompt": PROMPT, "documents": [{"text": "a", "key": "tiny-1"}]}),
        (400, {"prompt": PROMPT, "documents": [{"image": "/etc/passwd"}]}),
        (400, {"prompt": PROMPT, "retrieve": 100}),
        (400, {"prompt": "x" * 30_000}),
        (400, {"prompt": "fox " * 400}),
        (400, {"prompt": PROMPT, "guidance": [1, 2]}),
    ):
        answer = httpx.post(f"{server.url}/v1/images/generations", json=body, timeout=60)
        assert answer.status_code == status, body
        sentence = answer.json()["error"]["message"]
        assert sentence.endswith(".")
        assert "\n" not in sentence
    message = {"role": "user", "content": "a <image:/etc/passwd>"}
    with pytest.raises(openai.BadRequestError, match="names a file, and a server reads none"):
        client.chat.completions.create(model="tiny", messages=[message])
    assert httpx.get(f"{server.url}/nothing").json()["error"]["message"] == (
        "there is no GET /nothing here."
    )


def test_hosts_and_keys_are_checked(generator):
    with serving(generator, key="secret", hosts=frozenset({"127.0.0.1"})) as server:
        with client_of(server, "secret") as client:
            assert [m.id for m in client.models.list()] == ["tiny"]
        with client_of(server, "other") as client:
            with pytest.raises(openai.AuthenticationError, match="key is wrong or missing"):
                client.models.list()
        assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
        foreign = httpx.get(f"{server.url}/health", headers={"host": "evil.example"})
        assert foreign.status_code == 421
        page = {"sec-fetch-site": "cross-site", "authorization": "Bearer secret"}
        url = f"{server.url}/v1/images/generations"
        assert httpx.post(url, json={"prompt": PROMPT}, headers=page).status_code == 403


def upload_refused(url):
    """What a server answers to the head of an upload whose body does not come."""
    with socket.create_connection(url.removeprefix("http://").split(":"), timeout=20) as link:
        link.sendall(
            b"POST /v1/images/edits HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 9999999\r\n"
            b"content-type: multipart/form-data; boundary=x\r\n\r\n"
        )
        return link.recv(100)


def test_a_full_queue_says_when_to_come_again(generator, monkeypatch):
    go, closed = threading.Event(), threading.Event()
    advance, cancel = loop.Slots.advance, DrawingEngine.cancel

    def held(*args):
        assert go.wait(60)
        return advance(*args)

    def watched(*args):
        cancel(*args)
        closed.set()

    monkeypatch.setattr(loop.Slots, "advance", held)
    monkeypatch.setattr(DrawingEngine, "cancel", watched)
    with serving(generator, Limits(queue=1), slots=1) as server:
        body = {"prompt": PROMPT, "n": 8, "stream": True}
        url = f"{server.url}/v1/images/generations"
        try:
            with httpx.stream("POST", url, json=body, timeout=60) as first:
                assert first.status_code == 200
                refused = httpx.post(url, json=body, timeout=60)
                assert refused.status_code == 429
                assert int(refused.headers["retry-after"]) >= 1
                assert "send the request again" in refused.json()["error"]["message"]
                assert upload_refused(server.url).startswith(b"HTTP/1.1 429 ")
            assert closed.wait(60)
        finally:
            go.set()
        # Closing the first frees its place after the chunk that ran, before any sample was done.
        deadline = time.monotonic() + 60
        while server.studio.engine.load["open"] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.studio.engine.load == {"open": 0, "waiting": 0, "busy": 0, "slots": 1}
        assert server.studio.engine.tokens == 0


def test_requests_that_are_read_count_in_the_queue(generator):
    async def two(studio):
        go = threading.Event()
        first = asyncio.ensure_future(studio.read(lambda: go.wait(60)))
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await studio.read(lambda: go.wait(60))
        go.set()
        assert await first
        assert await studio.read(lambda: go.wait(60))

    with serving(generator, Limits(queue=1)) as server:
        asyncio.run(two(server.studio))


def test_a_document_can_be_seen_and_taken_down_while_the_server_runs(tmp_path):
    from cm3jax.generation import loading

    generator = loading.load(testing.write_chain(tmp_path), prefix_cache=1 << 20)
    generator.prefixes.keep(Known(np.zeros(3, np.int32), (), 3))
    with serving(generator) as server:
        url = f"{server.url}/v1/documents/tiny-2"
        seen = httpx.get(url, timeout=60).json()
        assert (seen["source"], seen["licence"]) == ("tiny", "CC0-1.0")
        assert pixels(seen["b64_json"]).shape == (16, 16, 3)
        assert len(generator.prefixes) == 1
        assert httpx.delete(url, timeout=60).json()["deleted"] is True
        deadline = time.monotonic() + 60
        while len(generator.prefixes):  # the engine's thread forgets what it has read
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert httpx.get(url, timeout=60).status_code == 400
        body = {"prompt": PROMPT, "documents": [{"key": "tiny-2"}]}
        answer = httpx.post(f"{server.url}/v1/images/generations", json=body, timeout=60)
        assert "has no document 'tiny-2'" in answer.json()["error"]["message"]


def test_others_draw_while_a_document_is_taken_out(tmp_path, monkeypatch):
    """That writes the whole bank again; two who take documents out wait for each other."""
    from cm3jax.generation import loading

    go, began, take = threading.Event(), threading.Event(), studio.remove

    def held(*args, **options):
        began.set()
        assert go.wait(60)
        return take(*args, **options)

    monkeypatch.setattr(studio, "remove", held)
    with serving(loading.load(testing.write_chain(tmp_path))) as server:
        answers = []

        def delete(key):
            url = f"{server.url}/v1/documents/{key}"
            answers.append(httpx.delete(url, timeout=120).status_code)

        threads = [threading.Thread(target=delete, args=(f"tiny-{n}",)) for n in (2, 3)]
        for thread in threads:
            thread.start()
        try:
            assert began.wait(60)
            body = {"prompt": PROMPT, "documents": [{"key": "tiny-4"}]}
            url = f"{server.url}/v1/images/generations"
            assert httpx.post(url, json=body, timeout=60).status_code == 200
        finally:
            go.set()
        for thread in threads:
            thread.join()
        assert answers == [200, 200]
        bank = server.studio.generator.retriever.bank
        assert not {"tiny-2", "tiny-3"} & {document.key for document in bank.documents()}


def test_what_another_process_takes_out_is_no_longer_shown(tmp_path, monkeypatch):
    """Not while it still rewrites the bank, either."""
    from cm3jax.generation import loading

    monkeypatch.setattr(studio, "LOOK_SECONDS", 0.0)
    with serving(loading.load(testing.write_chain(tmp_path))) as server:
        url = f"{server.url}/v1/documents"
        assert httpx.get(f"{url}/tiny-2", timeout=60).status_code == 200
        bank = Bank.open(tmp_path / "bank")
        held = server.studio.reader.picture(
            ImageBody(prompt=PROMPT, documents=[{"key": "tiny-2"}])  # type: ignore[arg-type]
        )
        with hold(bank.path, "taking something out"):
            Removed(keys=("tiny-2",)).save(bank.path)
            seen = httpx.get(f"{url}/tiny-2", timeout=60)
            assert (seen.status_code, "taken out" in seen.text) == (400, True)
            body = {"prompt": PROMPT, "documents": [{"key": "tiny-2"}]}
            drawn = httpx.post(f"{server.url}/v1/images/generations", json=body, timeout=60)
            assert drawn.status_code == 410
        assert httpx.get(f"{url}/tiny-3", timeout=60).status_code == 200
        assert "has no document" in httpx.get(f"{url}/tiny-2", timeout=60).text
        assert len(server.studio.generator.retriever.bank) == len(bank) - 1

        async def late():
            with pytest.raises(studio.Withdrawn):
                server.studio.open(held)

        asyncio.run(late())


def test_what_another_takes_out_during_a_takedown_is_gone_when_it_ends(tmp_path, monkeypatch):
    """Else its requests were sent away for ever: the bank that is open would have it still."""
    from cm3jax.generation import loading

    built, build = [], studio.Retriever
    monkeypatch.setattr(studio, "LOOK_SECONDS", 0.0)

    def slow(*args):
        built.append(args)
        if len(built) == 1:
            studio.remove(Bank.open(tmp_path / "bank"), Removed(keys=("tiny-4",)))
            assert "taken out" in httpx.get(f"{url}/tiny-4", timeout=60).text
        return build(*args)

    monkeypatch.setattr(studio, "Retriever", slow)
    with serving(loading.load(testing.write_chain(tmp_path))) as server:
        url = f"{server.url}/v1/documents"
        assert httpx.delete(f"{url}/tiny-2", timeout=120).status_code == 200
        assert "has no document" in httpx.get(f"{url}/tiny-4", timeout=60).text
        assert not {"tiny-2", "tiny-4"} & server.studio.generator.retriever.bank.rows.keys()


def test_a_document_that_was_merged_while_the_server_runs_can_be_taken_down(tmp_path):
    from cm3jax.generation import loading

    with serving(loading.load(testing.write_chain(tmp_path))) as server:
        url = f"{server.url}/v1/documents"
        assert httpx.get(f"{url}/tiny-2", timeout=60).status_code == 200
        bank = Bank.open(tmp_path / "bank")
        new = dataclasses.replace(bank.meta(0), key="new", ids=bank.ids(0)[::-1])
        made_for = (bank.manifest["encoder"], bank.manifest["vocab"])
        other = Bank.build(tmp_path / "other", [new], bank.vectors[:1], *made_for)
        assert "new" in merge(bank.path, [bank, other]).rows
        assert httpx.delete(f"{url}/new", timeout=60).status_code == 200
        assert set(Bank.open(bank.path).rows) == set(bank.rows)


def test_a_takedown_while_somebody_writes_the_bank_is_to_be_sent_again(tmp_path):
    from cm3jax.generation import loading

    with serving(loading.load(testing.write_chain(tmp_path))) as server:
        url = f"{server.url}/v1/documents/tiny-2"
        with hold(tmp_path / "bank", "merging banks into it"):
            refused = httpx.delete(url, timeout=60)
        assert refused.status_code == 503
        assert "send the request again" in refused.json()["error"]["message"]
        assert httpx.delete(url, timeout=60).status_code == 200


def test_metrics_tell_of_requests_and_slots(client, server):
    client.images.generate(prompt=PROMPT)
    text = httpx.get(f"{server.url}/metrics").text
    for line in (
        'cm3jax_requests_total{route="/v1/images/generations",status="200"}',
        "cm3jax_slots 4.0",
        "cm3jax_requests_open 0.0",
        "cm3jax_tokens_total",
        "cm3jax_decode_tokens_per_pass 1.0",
        "cm3jax_prefix_hit_rate 0.0",
        "cm3jax_first_rows_seconds_count",
    ):
        assert f"\n{line}" in text
    figures = {name: float(value) for name, value in re.findall(r"^(\w+) (\S+)$", text, re.M)}
    assert 0 < figures["cm3jax_rows_busy"] <= 1
    assert figures["cm3jax_compile_seconds"] > 0


def test_an_engine_that_fails_leaves_nobody_waiting(generator, monkeypatch):
    with serving(generator) as server:
        monkeypatch.setattr(server.studio.engine, "_turn", lambda *_: 1 / 0)
        url = f"{server.url}/v1/images/generations"
        assert httpx.post(url, json={"prompt": PROMPT}, timeout=60).status_code == 500
        server.studio.engine.close()
        assert httpx.get(f"{server.url}/health", timeout=60).status_code == 503
        refused = httpx.post(url, json={"prompt": PROMPT}, timeout=60)
        assert (refused.status_code, refused.json()["error"]["type"]) == (503, "server_error")
        counted = httpx.get(f"{server.url}/metrics", timeout=60).text
        assert 'route="/v1/images/generations",status="500"} 1.0' in counted


def test_an_error_of_the_program_is_no_missing_page():
    assert described(KeyError("x"))["code"] == 500


def test_where_a_server_of_vectors_is_that_does_not_answer_is_not_told():
    said = described(Unanswered("Milvus at http://inner:19530 does not answer as it should."))
    assert (said["code"], said["type"]) == (503, "server_error")
    assert said["message"].startswith("documents can't be searched at present; ask again later")


def test_slots_are_a_multiple_of_the_devices_that_share_them(generator, monkeypatch):
    assert generator.whole_slots(6) == 6
    monkeypatch.setattr(loop, "shards_of", lambda _: 4)
    assert generator.whole_slots(6) == 8
    assert generator.whole_slots(8) == 8


def test_a_client_that_does_not_read_is_let_go(monkeypatch):
    monkeypatch.setattr(streams, "LAST_SECONDS", 0.05)
    closed = []

    async def events():
        while True:
            yield b"data: more\n\n"

    async def never(message=None):
        if message is None or message["type"] == "http.response.body":
            await asyncio.Event().wait()

    class Held(Session):
        def __init__(self):
            """Nothing to draw."""

        def close(self):
            closed.append(self)

    stream = streams.EventStream(Held(), events(), described, 0.05)
    asyncio.run(asyncio.wait_for(stream({}, never, never), 10))
    assert closed


def test_the_event_loop_packs_no_pictures(client, monkeypatch):
    """A large one takes a while, in which all others would stand still."""
    threads, pack = set(), replies.base64_png

    def watched(image):
        threads.add(threading.current_thread().name.split("_")[0])
        return pack(image)

    monkeypatch.setattr(replies, "base64_png", watched)
    client.images.generate(prompt=PROMPT)
    assert list(client.images.generate(prompt=PROMPT, stream=True))
    message = {"role": "user", "content": "a fox"}
    client.chat.completions.create(model="tiny", messages=[message])
    assert list(client.chat.completions.create(model="tiny", messages=[message], stream=True))
    assert threads == {"worker"}
