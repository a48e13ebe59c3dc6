"""An HTTP server with the API of OpenAI (`ming serve`), its replicas (`ming cluster`), a web page (`ming page`).

    middleware.py   a request comes in: API key, size of the body, room in the queue
    requests.py     its JSON is validated
    media.py        its images, audio and videos are read (fetch.py) and measured
    prepare.py      the processor makes the model's inputs: a job (engine_jobs.py)
    engine.py       jobs wait in a queue; threads run them on the model, one of them all texts (running_batch.py), one
                    the codec ids of all spoken replies (running_speech.py), a few their flow (running_audio.py)
    batching.py     tokens become the text of each job
    server.py       routes; the job's events become an answer or a stream (responses.py, audio_formats.py)
                    spoken_replies.py keeps what was said, for the history of later requests; remarks.py adds warnings

openapi.py documents the routes, options.py builds the app from what the command line says (settings.py). With several
replicas, cluster.py starts them and failover.py passes requests on to them (forwarding.py). page.py is the page in the
browser, without HTTP API.
"""
