import io

import numpy as np
import PIL.Image
import pytest

import cm3jax
from cm3jax import testing
from cm3jax.errors import UserError
from cm3jax.generation.display import ImageArray


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(png)))


def test_pictures_show_themselves_and_are_saved(generator, tmp_path):
    image = generator.generate("a red fox").image
    assert isinstance(image, ImageArray)
    shown = pixels(image._repr_png_())
    assert shown.shape == (128, 128, 3)
    np.testing.assert_array_equal(shown[::8, ::8], image)  # 16 pixels a side, each eight times
    for name in ("x.png", "x.webp", "x.jpg"):
        image.save(tmp_path / name)
        assert pixels((tmp_path / name).read_bytes()).shape == (16, 16, 3)
    np.testing.assert_array_equal(pixels((tmp_path / "x.png").read_bytes()), image)
    with pytest.raises(UserError, match=r"call it NAME\.png"):
        image.save(tmp_path / "x.doc")
    with pytest.raises(UserError, match=r"x\.xbm can't be written as XBM .* call it NAME\.png"):
        image.save(tmp_path / "x.xbm")
    with pytest.raises(UserError, match=r"only images are saved, .* float64 of 16 x 16 x 3"):
        (image / 2).save(tmp_path / "x.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.jpg", "x.png", "x.webp"]
    for other in (image[0], image / 2, np.stack([image])):
        assert getattr(other, "_repr_png_", lambda: None)() is None


def test_a_large_picture_is_shown_as_it_is():
    image = np.zeros((200, 300, 3), np.uint8).view(ImageArray)
    assert pixels(image._repr_png_()).shape == (200, 300, 3)


def test_what_was_drawn_goes_back_in(generator):
    image = generator.generate("a red fox").image
    ((caption,),) = generator.caption([image])
    ((plain,),) = generator.caption([np.asarray(image)])
    assert caption.text == plain.text


def test_samples_and_documents_show_themselves(generator):
    sample = generator.generate("a cat", retrieve=1, documents=[cm3jax.Document("a <b> & c")])
    (given, found) = sample.documents
    page = sample._repr_html_()
    assert page.count("data:image/png") == 1
    assert f"after 1 given, {found.key} ({found.score:.2f}); perplexity" in page
    assert "without documents" in generator.generate("a cat")._repr_html_()
    page = generator.as_document(given)._repr_html_()
    assert "a &lt;b&gt; &amp; c" in page
    document = generator.as_document(found)
    assert (document.key, document.score, document.licence) == (found.key, found.score, "CC0-1.0")
    assert f"{found.key}, score {found.score:.2f}, CC0-1.0, tiny" in document._repr_html_()
    assert document.text == found.meta.text
    assert document.image.shape == testing.pictures(1).shape[1:]
    assert repr(document).startswith(f"Document({found.meta.text!r}, <(16, 16, 3) image>, key='")
