"""An HTTP server with the shapes of OpenAI's API: `python -m serving --model DIRECTORY`.

request -> requests.py (shapes) -> media.py, fetch.py (media, guarded) -> prepare.py (processor: a job)
        -> engine.py (queue, one thread with the model; batching.py) -> server.py, replies.py (answers, streams)
"""
