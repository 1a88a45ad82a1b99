"""The miniature on real images: emoji of four artists, whose names training holds out.

`weights/` holds the text tokenizer, and as bfloat16 the image tokenizer and the encoder. They
learnt from Noto (Google, Apache-2.0), Twemoji (Twitter and others, CC BY 4.0), OpenMoji (its
authors, CC BY-SA 4.0) and Fluent Emoji (Microsoft, MIT), in the versions that `text.py` names.
"""
