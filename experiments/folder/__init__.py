"""A neutral chain for any folder of images with captions, from 32 to 256 pixels.

`python -m launch.chain DIR` trains all of its members in turn.
"""
