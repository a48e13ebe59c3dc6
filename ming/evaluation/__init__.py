"""What evaluations need of an installed package: lmms-eval's model `ming`, answers in batches, and a journal of them.

The tables of the paper are in the checkout (`evaluation/`).
"""
