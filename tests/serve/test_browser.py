"""The page in a real browser, with the shipped weights behind it: what it shows is compared with
the server's own answers to the requests that it should have sent."""

import base64
import io
import json
import re
from pathlib import Path

import httpx
import numpy as np
import PIL.Image
import pytest
from playwright.sync_api import expect

from cm3jax.emblems.palette import BACKGROUNDS
from tests.serve.shipped import HOSTILE, chromium, shipped_server

pytestmark = pytest.mark.slow  # and needs a Chromium, which the default suite must not

PROMPT = "the zubetu emblem at the top left and the kungisu emblem at the bottom right on sand"
SEED = 5
DRAW = {"prompt": PROMPT, "n": 1, "seed": SEED, "guidance": 3, "temperature": 0.5}
ROLES = "button|link|textbox|spinbutton|combobox|slider|switch|img|dialog|article"
UNNAMED = re.compile(rf"^\s*- (?:{ROLES})(?: \[|:|$)", re.MULTILINE)
CONTRASTS = Path(__file__).parent / "contrasts.js"
STOP_AT_THE_FIRST_ROW = r"""() => new MutationObserver((changes, observer) => {
  if (!/row \d/.test(document.getElementById("results").textContent)) return;
  observer.disconnect();
  document.getElementById("stop").click();
}).observe(document.getElementById("results"), { childList: true, subtree: true })"""
expect.set_options(timeout=240_000)  # programs are compiled at first use


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    with shipped_server(tmp_path_factory.mktemp("emblems"), "sft") as running:  # it answers, too
        yield running


@pytest.fixture
def open_page(browser, shipped):
    """Opens the page; at the end no script may have failed, and no text have become one."""
    contexts, wrong = [], []

    def open_(width=1200, **options):
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        context.set_default_timeout(240_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on("console", lambda said: said.type == "error" and wrong.append(said.text))
        page.goto(shipped.url)
        expect(page.locator("#model")).to_have_text(shipped.name)
        page.fill("#prompt", PROMPT)
        for name in ("seed", "guidance", "temperature"):
            page.fill(f"#{name}", str(DRAW[name]))
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not wrong


@pytest.fixture
def answer(shipped):
    """The server's own answer to a request for images, its first sample."""

    def ask(files=None, **body):
        kind = "edits" if files else "generations"
        url = f"{shipped.url}/v1/images/{kind}"
        sent = {"json": body}
        if files:
            form = {k: json.dumps(v) if isinstance(v, list) else str(v) for k, v in body.items()}
            sent = {"data": form, "files": {k: (k, v, "image/png") for k, v in files.items()}}
        found = httpx.post(url, timeout=300, **sent)
        assert found.status_code == 200, found.text
        return found.json()["data"][0]

    return ask


def draw(page, documents):
    page.select_option("#retrieve", str(documents))
    page.get_by_role("button", name="Draw", exact=True).click()
    return done(page.locator("article").first)


def done(card):
    expect(card).to_have_attribute("aria-busy", "false")
    expect(card.locator(".stack img")).to_have_attribute("alt", re.compile("^an image of"))
    return card


def content(card):
    """The image of a card, as the API gives it."""
    return card.locator(".stack img").get_attribute("src").removeprefix("data:image/png;base64,")


def pixels(encoded):
    image = PIL.Image.open(io.BytesIO(base64.b64decode(encoded)))
    return np.asarray(image.convert("RGB")).astype(int)


def upload(tmp_path, colour="teal"):
    path = tmp_path / "mine.png"
    PIL.Image.new("RGB", (32, 32), colour).save(path)
    data = base64.b64encode(path.read_bytes()).decode()
    return path, f"data:image/png;base64,{data}"


def after(page, words):
    """The card that a change made."""
    return done(page.get_by_role("article", name=words))


def tab_to(page, name, most=60):
    """Press Tab until the focus is on what a screen reader calls by this name."""
    focused = "({activeElement: e}) => e.ariaLabel || e.labels?.[0]?.textContent || e.textContent"
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate(f"({focused})(document)").strip().startswith(name):
            return
    raise AssertionError(f"the key Tab does not reach {name}")


def test_pictures_appear_row_by_row(open_page, answer):
    page = open_page()
    page.evaluate(
        """() => {
            window.frames_ = [];
            const see = (list) => list.forEach(({target}) => frames_.push(target.src));
            new MutationObserver(see).observe(document.querySelector("#results"),
                {subtree: true, attributes: true, attributeFilter: ["src"]});
        }"""
    )
    card = draw(page, 0)
    frames = [frame.split(",")[1] for frame in page.evaluate("frames_")]
    own = answer(**DRAW)["b64_json"]
    assert frames[-1] == content(card) == own
    rows = [int((pixels(frame) != 128).any((1, 2)).sum()) // 8 for frame in frames]
    assert rows == sorted(set(rows))  # two rows may come at once where the machine is slow
    assert len(rows) > 1
    assert rows[-1] == 4
    first, done_ = pixels(frames[0]), 8 * rows[0]
    np.testing.assert_array_equal(first[:done_], pixels(own)[:done_])


def test_documents_are_shown_removed_weighed_and_replaced(open_page, answer, tmp_path):
    page = open_page()
    card = draw(page, 2)
    own = answer(**DRAW, retrieve=2)
    assert content(card) == own["b64_json"]
    items = card.locator(".documents > li")
    expect(items).to_have_count(2)
    first, second = own["documents"]
    for item, known in zip(items.all(), own["documents"], strict=True):
        for part in (f"score {known['score']:.2f}", known["source"], known["licence"]):
            expect(item).to_contain_text(part)
        expect(item.locator("p").first).to_contain_text("emblem")
    expect(items.first.locator("img")).to_have_attribute("src", re.compile("^data:image/png"))

    items.first.get_by_role("button", name="Remove").click()
    removed = after(page, re.compile("^without"))
    kept = answer(**DRAW, documents=[{"key": second["key"]}])
    assert content(removed) == kept["b64_json"]
    expect(removed.locator(".documents > li")).to_have_count(1)
    expect(removed.locator(".documents")).to_contain_text(f"score {second['score']:.2f}")

    items.first.get_by_role("button", name="another").click()
    other = answer(**DRAW, retrieve=2, exclude=[first["key"]])
    assert first["key"] not in [one["key"] for one in other["documents"]]
    assert content(after(page, re.compile("^another for"))) == other["b64_json"]

    items.first.get_by_role("spinbutton").fill("0.5")
    items.first.get_by_role("spinbutton").press("Enter")
    weighed = answer(**DRAW, retrieve=2, weigh={first["key"]: 0.5})
    assert [one["key"] for one in weighed["documents"]] != [first["key"], second["key"]]
    assert content(after(page, re.compile("weighed 0.5$"))) == weighed["b64_json"]

    path, url = upload(tmp_path)
    with page.expect_file_chooser() as chooser:
        items.last.get_by_role("button", name="Replace").click()
    chooser.value.set_files(path)
    replaced = after(page, re.compile("^your image for"))
    shown = [{"key": first["key"]}, {"image": url}]
    assert content(replaced) == answer(**DRAW, documents=shown)["b64_json"]
    expect(replaced.locator(".documents > li").last).to_contain_text("yours")


def test_what_each_document_did_is_drawn_over_the_picture(open_page, answer):
    page = open_page()
    card = draw(page, 2)
    known = answer(**DRAW, retrieve=2, attribute=True)["documents"]
    most = max(abs(nats) for one in known for row in one["heat"] for nats in row)
    for item, one in zip(card.locator(".documents > li").all(), known, strict=True):
        word = "less likely" if one["log_probability"] < 0 else "likelier"
        expect(item).to_contain_text(f"{abs(one['log_probability']):.1f} nats {word} with it")
        if one["copied_share"] is not None:
            share = int(100 * one["copied_share"] + 0.5)
            expect(item).to_contain_text(f"{share} % of the codes as in its image")
        where = item.get_by_role("button", name="Where in the image")
        where.click()
        expect(where).to_have_attribute("aria-pressed", "true")
        expect(card.locator("[aria-pressed=true]")).to_have_count(1)
        shown = card.locator(".stack canvas").evaluate(
            "(map) => [...map.getContext('2d').getImageData(0, 0, map.width, map.height).data]"
        )
        heat, cover = np.array(one["heat"]), np.array(shown).reshape(4, 4, 4)[..., 3]
        np.testing.assert_allclose(cover, 200 * np.abs(heat) / most, atol=1)
    where.click()
    expect(card.locator(".stack canvas")).to_have_count(0)


def test_no_one_and_two_documents_side_by_side(open_page, answer):
    page = open_page()
    page.get_by_role("switch").check()
    page.get_by_role("button", name="Draw", exact=True).click()
    for count, name in enumerate(("no documents", "1 document", "2 documents")):
        card = after(page, re.compile(f"^{name}$"))
        assert content(card) == answer(**DRAW, retrieve=count)["b64_json"]
    tops = page.evaluate("[...document.querySelectorAll('article')].map((n) => n.offsetTop)")
    assert len(tops) == 3
    assert len(set(tops)) == 1


def test_only_what_a_brush_painted_over_is_drawn_again(open_page, answer):
    page = open_page()
    card = draw(page, 1)
    before = content(card)
    card.get_by_role("button", name="Paint over").click()
    caption = f"{PROMPT} and a large red circle at d4"
    page.get_by_label("Caption").last.fill(caption)
    box = page.locator("#canvas").bounding_box()
    at = [
        (box["x"] + share * box["width"], box["y"] + share * box["height"]) for share in (0.7, 0.9)
    ]
    page.mouse.move(*at[0])
    page.mouse.down()
    page.mouse.move(*at[1], steps=4)
    page.mouse.up()
    forms = []

    def sent(route):
        forms.append(route.request.post_data_buffer)
        route.continue_()

    page.route("**/v1/images/edits", sent)
    page.get_by_role("button", name="Redraw").click()
    redrawn = content(after(page, "painted over"))
    mask = re.search(rb'name="mask"; filename.*?\r\n\r\n(.*?)\r\n--', forms[0], re.DOTALL)[1]
    hole = np.asarray(PIL.Image.open(io.BytesIO(mask)).getchannel("A")) == 0
    assert hole[22, 22]
    assert hole[28, 28]
    assert not hole[:16].any()
    shown = [{"key": answer(**DRAW, retrieve=1)["documents"][0]["key"]}]
    body = {"prompt": caption, "seed": SEED, "temperature": 0.5, "documents": shown}
    own = answer({"image": base64.b64decode(before), "mask": mask}, **body)
    assert redrawn == own["b64_json"]
    np.testing.assert_array_equal(pixels(redrawn)[:16], pixels(before)[:16])
    assert (pixels(redrawn) != pixels(before))[16:, 16:].any()


def test_a_picture_is_asked_about_and_captioned(open_page, shipped):
    page = open_page()
    card = draw(page, 1)
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{content(card)}"}}
    question = "what is the background?"
    asked = {"vqa": [{"type": "text", "text": question}, picture], "caption": [picture]}
    card.get_by_role("textbox").fill(question)
    card.get_by_role("button", name="Ask", exact=True).click()
    expect(page.get_by_role("status")).to_contain_text("Asking: done")
    card.get_by_role("button", name="Caption").click()
    expect(page.get_by_role("status")).to_contain_text("Captioning: done")
    for title, (task, parts) in zip((question, "Caption"), asked.items(), strict=True):
        body = {"messages": [{"role": "user", "content": parts}], "task": task}
        found = httpx.post(
            f"{shipped.url}/v1/chat/completions",
            json={**body, "seed": SEED, "temperature": 0.5},
            timeout=300,
        ).json()
        said = found["choices"][0]["message"]["content"]
        assert said
        heading = card.locator("[role=log] h4", has_text=title)
        expect(heading.locator("xpath=following-sibling::*[1]")).to_have_text(said)
        assert task != "vqa" or said in BACKGROUNDS


def test_a_document_with_marks_and_a_picture_goes_on(open_page, tmp_path):
    page = open_page()
    page.fill("#prompt", "")
    path, _ = upload(tmp_path)
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Insert an image").click()
    chooser.value.set_files(path)
    expect(page.locator("#uploads img")).to_have_count(1)
    for mark in ("break", "mask", "infill"):
        page.get_by_role("button", name=f"Insert {mark}").click()
    expect(page.locator("#prompt")).to_have_value("<image:1><break><mask><infill>")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.get_by_role("status")).to_contain_text("marks of a document")
    with page.expect_request("**/v1/chat/completions") as sent:
        page.get_by_role("button", name="Continue or fill in").click()
    kinds = [part["type"] for part in sent.value.post_data_json["messages"][0]["content"]]
    assert kinds == ["image_url", "text"]
    expect(page.get_by_role("status")).to_contain_text("Writing: done")
    expect(page.locator("article .parts > p")).not_to_be_empty()


def test_a_result_is_saved_with_its_recipe_and_opened_again(open_page, tmp_path):
    page = open_page()
    card = draw(page, 2)
    saved = {}
    for kind in ("PNG", "JSON"):
        with page.expect_download() as download:
            card.get_by_role("button", name=f"as {'a PNG' if kind == 'PNG' else 'JSON'}").click()
        saved[kind] = tmp_path / download.value.suggested_filename
        download.value.save_as(saved[kind])
    whole = json.loads(saved["JSON"].read_text())
    with PIL.Image.open(saved["PNG"]) as picture:
        picture.load()
        recipe = json.loads(picture.text["cm3jax recipe"])
        own = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(own, pixels(whole["answer"].pop("b64_json")))
    assert recipe == whole
    assert whole["job"]["body"].items() >= {**DRAW, "retrieve": 2}.items()
    assert [one["text"] for one in whole["documents"]]
    assert all(one["licence"] for one in whole["documents"])
    for path in saved.values():
        other = open_page()
        with other.expect_file_chooser() as chooser:
            other.get_by_role("button", name="Open a PNG or JSON").click()
        chooser.value.set_files(path)
        opened = done(other.locator("article").first)
        np.testing.assert_array_equal(pixels(content(opened)), own)
        expect(opened.locator(".documents > li")).to_have_count(2)
        opened.get_by_role("button", name="Remove").first.click()
        after(other, re.compile("^without"))
    none = tmp_path / "none.json"
    none.write_text('{"answer": {}}')
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Open a PNG or JSON").click()
    chooser.value.set_files(none)
    expect(page.get_by_role("status")).to_contain_text("none.json has no recipe")


def test_the_keyboard_reaches_everything(open_page):
    page = open_page()
    page.locator("#prompt").press("Tab")
    tab_to(page, "Documents")
    page.keyboard.press("End")
    tab_to(page, "Draw")
    page.keyboard.press("Enter")
    done(page.locator("article").first)
    tab_to(page, "Remove ")
    page.keyboard.press("Enter")
    made = after(page, re.compile("^without"))
    assert page.evaluate("document.activeElement.textContent").startswith("without")
    tab_to(page, "Paint over")
    page.keyboard.press("Enter")
    expect(page.locator("#canvas")).to_be_focused()
    for press in ("ArrowRight", "Shift+ArrowDown", "Space"):
        page.keyboard.press(press)
    tab_to(page, "Redraw")
    page.keyboard.press("Enter")
    painted = after(page, "painted over")
    assert content(painted) != content(made)
    tab_to(page, "A question")
    page.keyboard.type("what is the background?")
    page.keyboard.press("Enter")
    expect(painted.locator("[role=log] > div p")).not_to_be_empty()


def test_a_screen_reader_finds_a_name_for_everything(open_page):
    page = open_page()
    draw(page, 2)
    snapshot = page.locator("body").aria_snapshot()
    assert snapshot.count("- button") > 15
    assert not UNNAMED.findall(snapshot)
    page.get_by_role("button", name="Paint over").click()
    assert not UNNAMED.findall(page.get_by_role("dialog").aria_snapshot())


def test_html_stays_text(open_page):
    page = open_page()
    page.fill("#prompt", f"the {HOSTILE} emblem")
    card = draw(page, 2)
    text = card.locator(".documents").inner_text()
    assert text.count(HOSTILE) == 3  # caption, source and licence
    page.get_by_role("button", name="Caption").click()
    expect(page.get_by_role("status")).to_contain_text("Captioning: done")
    assert page.locator("[onerror], img[src=x], article script").count() == 0
    expect(page.locator("h2")).to_have_text(f"the {HOSTILE} emblem")


def test_refusals_are_told_and_a_drawing_stopped(browser, shipped):
    page = browser.new_page()
    page.goto(shipped.url)
    page.fill("#samples", "8")
    page.fill("#prompt", "x" * 20_001)
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.get_by_role("status")).to_contain_text("more than 20000; shorten it.")
    expect(page.locator("article").first).to_contain_text("shorten it.")
    page.fill("#prompt", PROMPT)
    page.evaluate(STOP_AT_THE_FIRST_ROW)  # in the page: a click from here may come too late
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.get_by_role("status")).to_contain_text("stopped.")
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_is_readable(open_page, scheme):
    page = open_page(width=360, color_scheme=scheme)
    draw(page, 2)
    page.get_by_role(
        "button", name="Ask", exact=True
    ).click()  # nothing is asked: a sentence in red
    fits = "document.documentElement.scrollWidth <= innerWidth"
    assert page.evaluate(fits)
    contrasts = page.evaluate(CONTRASTS.read_text())
    assert len(contrasts) > 20
    assert not [one for one in contrasts if one[1] < 4.5]
    page.get_by_role("button", name="Paint over").click()
    assert page.evaluate(fits)
    assert page.locator("#canvas").bounding_box()["width"] <= 360
