"""The tables of the paper, published and measured: `python -m evaluation table NAME`, see docs/evaluation.md.

A table is a file in `tables/`; each of its rows names what runs it:

    lmms      a task of lmms-eval, with `--model ming`                  lmms.py
    asr       recordings of a corpus, as its owner distributes it        asr.py
    geneval   images in folders, as the authors' script writes them      drawing.py
    fid       clean-fid on a folder of images                            drawing.py
    none      nothing: the note says why
"""
