"""`make demo`: the bundled checkpoint answers questions about a picture, a recording and a clip."""
