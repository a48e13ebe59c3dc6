"""Values of `mm_token_type_ids`, which say what a position of a prompt holds.

The processor writes them and the routers of the decoder read them: a position is text, or one patch of an image, of a
video or of audio. The module imports nothing, so that both sides can import it.
"""

TEXT_TYPE, IMAGE_TYPE, VIDEO_TYPE, AUDIO_TYPE = 0, 1, 2, 3
NUM_TYPES = 4

# What features of media are multiplied by for engines that hand the decoder embeddings and no types. Powers of two are
# exact in every floating point type. A word embedding must be shorter than `MAX_UNMARKED`.
IMAGE_MARK, AUDIO_MARK = 2.0**8, 2.0**12
MAX_UNMARKED = IMAGE_MARK / 16
