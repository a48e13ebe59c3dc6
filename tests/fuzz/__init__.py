"""Fuzzing: inputs that nobody thought of, made by hypothesis; each must end in an answer or in one documented error.

    make fuzz INPUTS=10000     all kinds, in child processes whose time and memory are watched

    values.py          odd values: numbers, tensors, things of another kind
    conversations.py   whole conversations with media and options -> the processor
    files.py           small media files, damaged in every way -> the loaders
    arguments.py       arguments of forward, generate, stream, speak, draw, decode and the endpoint's handler
    server.py          requests by the server's OpenAPI document (schemathesis), through ASGI
    outcomes.py        what counts as an answer, a refusal and a fault
    kinds.py           the table of kinds: strategy and trial of each
    __main__.py        the runner: chunks, progress, table

A strategy draws a *recipe*, plain data that can be printed and tried again; a trial makes the input of it and calls
what is tried. `tests/test_fuzz.py` runs a few hundred recipes of every kind with a fixed seed.
"""
