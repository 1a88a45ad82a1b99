"""A text and an image as the ids that a prompt has of them."""


def words(generator, text):
    return [generator.vocab.first_text + piece for piece in generator.text.encode(text)]


def codes(generator, image):
    return (generator.image.encode(image[None])[0] + generator.vocab.first_image).tolist()
