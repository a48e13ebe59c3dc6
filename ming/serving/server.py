"""The ASGI app: routes, and how the events of a job become an answer."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import torch
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from ming.encoding import encode_image, to_pcm16
from ming.events import AudioChunk, ImageDone, TextDelta
from ming.media import NamedBytes
from ming.randomness import MAX_SEED
from ming.serving import audio_formats
from ming.serving.engine import Engine
from ming.serving.engine_jobs import Deliver, Event, Failed, Finished, Job
from ming.serving.errors import (
    ApiError,
    from_validation,
    server_error,
    shorten,
    shutting_down,
    validate,
    wrong_content_type,
)
from ming.serving.fetch import Fetcher
from ming.serving.forwarding import IDENTITY, wait_for_disconnect
from ming.serving.metrics import Metrics
from ming.serving.middleware import AdmissionMiddleware
from ming.serving.openapi import form, responses
from ming.serving.prepare import Preparer, load_components
from ming.serving.remarks import RemarksMiddleware
from ming.serving.requests import ChatRequest, EditRequest, ImageRequest, SpeechRequest, TranscriptionRequest
from ming.serving.responses import END_OF_STREAM, ChatResponse, encode_base64, server_sent_event, usage
from ming.serving.settings import EngineSettings, Limits, Site
from ming.serving.spoken_replies import SpokenReplies
from ming.spoken_kinds import HAN

JSON, EVENTS, AUDIO = "application/json", "text/event-stream", (*audio_formats.MIME_TYPES.values(),)
FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
CLIENT_LEFT = 499  # the client does not read it, but the metrics count it
Result = TypeVar("Result")
Seeded = TypeVar("Seeded", ChatRequest, SpeechRequest, ImageRequest)
router = APIRouter()


class JobEvents:
    """The events of a job, read in the event loop while the engine's thread delivers them."""

    def __init__(self):
        self._loop, self._events = asyncio.get_running_loop(), asyncio.Queue[Event]()
        self.finished = Finished("cancelled")  # until the job ends otherwise

    def put(self, event: Event) -> None:
        """Deliver an event, from any thread."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Events before the last one, which is kept as `finished`.

        Raises:
            ApiError: the job failed, and the server's log holds the reason; or it was cancelled since the server is
                shutting down.
        """
        while True:
            event = await self._events.get()
            if isinstance(event, Failed):
                raise server_error() from event.error
            if isinstance(event, Finished):
                if event.reason == "cancelled":
                    raise shutting_down()
                self.finished = event
                return
            yield event


class Service:
    """What the routes share: preparer, engine, and the name that the model is served by."""

    def __init__(self, name: str, preparer: Preparer, engine: Engine, metrics: Metrics):
        self.name, self.preparer, self.engine, self.metrics = name, preparer, engine, metrics
        self.started = int(time.time())

    def check_model(self, model: str | None) -> None:
        """Raise unless a request asks for the served model, or for none."""
        if model not in (None, self.name):
            raise ApiError(
                f"model {shorten(model)} is not served here; ask for {self.name!r}",
                "model",
                status=404,
                code="model_not_found",
            )

    async def submit(self, prepare: Callable[[Deliver], Job]) -> tuple[Job, JobEvents]:
        """Prepare a job in a thread and hand it to the engine.

        Raises:
            ApiError: the queue is full, or the request cannot be served.
        """
        self.engine.reserve()
        reply = JobEvents()
        try:
            job = await asyncio.to_thread(prepare, reply.put)
        except BaseException:
            self.engine.release()
            raise
        self.engine.submit(job)
        return job, reply

    async def while_connected(self, request: Request, job: Job, work: Awaitable[Result]) -> Result:
        """Wait for a result of a job; the job is cancelled when the client leaves first.

        Raises:
            ApiError: the client left.
        """
        task = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(wait_for_disconnect(request.receive))
        try:
            await asyncio.wait((task, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ApiError("the client left", status=CLIENT_LEFT)
            return task.result()
        except BaseException:
            self.engine.cancel(job)
            raise
        finally:
            task.cancel()
            leaving.cancel()

    async def stream(self, request: Request, job: Job, pieces: AsyncIterator[bytes], **options) -> Response:
        """A streamed answer. It begins when its first piece is there: an error before it has its own status."""
        first = await self.while_connected(request, job, anext(pieces))
        return JobStream(self.engine, job, _chain(first, pieces), **options)

    async def stream_events(self, request: Request, job: Job, pieces: AsyncIterator[bytes]) -> Response:
        """An event stream; an error after its first piece is its last event."""
        first = await self.while_connected(request, job, anext(pieces))
        return JobStream(self.engine, job, _as_events(_chain(first, pieces)), media_type=EVENTS)


class JobStream(StreamingResponse):
    """A streamed answer that ends the job when it ends, for whatever reason."""

    def __init__(self, engine: Engine, job: Job, pieces: AsyncIterator[bytes], **options):
        super().__init__(pieces, **options)
        self.engine, self.job = engine, job

    async def __call__(self, scope, receive, send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.engine.cancel(self.job)


async def _chain(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


async def _collect(reply: JobEvents) -> list[Event]:
    return [event async for event in reply]


def _text(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def _audio(events: list[Event]) -> torch.Tensor:
    """The waveform [N] of all chunks."""
    return torch.cat([torch.zeros(0), *(event.waveform for event in events if isinstance(event, AudioChunk))])


def _empty_speech() -> ApiError:
    return ApiError("the talker made no audio; try another seed", status=500, code="empty_speech", kind="server_error")


async def _as_events(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """An event stream with its last line, or with an error as the last event."""
    try:
        async for piece in pieces:
            yield piece
    except ApiError as error:
        yield server_sent_event(error.body())
        return
    yield END_OF_STREAM


async def _form(request: Request, names: tuple[str, ...]) -> tuple[dict[str, Any], list[NamedBytes]]:
    """Fields of a multipart form, and the files under one of the names, in their order, with the client's names.

    A field whose name ends with [] is a list. An empty one is left out: forms have no null.
    """
    kind = request.headers.get("content-type")
    if kind is None or kind.partition(";")[0].strip().lower() not in FORMS:
        raise wrong_content_type(kind, FORMS[0])
    async with request.form() as form:
        fields: dict[str, Any] = {}
        for name, value in form.multi_items():
            if isinstance(value, UploadFile) or not value:
                continue
            if name in fields and not name.endswith("[]"):
                raise ApiError(f"{name}: it is there more than once; send it once", name)
            fields[name] = [*fields.get(name, []), value] if name.endswith("[]") else value
        files = [(name, value) for name, value in form.multi_items() if isinstance(value, UploadFile)]
        if unknown := next((name for name, _ in files if name not in names), None):
            raise ApiError(f"a file under {unknown!r} is not supported here; send it under {names[0]!r}", unknown)
        return fields, [NamedBytes(await file.read(), file.filename or name) for name, file in files]


def _service(request: Request) -> Service:
    return request.app.state.service


def _identity(request: Request) -> dict[str, Any]:
    """Name and time of a request that a proxy may repeat; empty where it came straight from a client."""
    return request.scope.get("extensions", {}).get(IDENTITY, {})


def _with_own_seed(request: Request, body: Seeded) -> Seeded:
    """The request with a seed made of its name, so that it draws the same numbers when it is repeated."""
    if body.seed is not None or not (identity := _identity(request)):
        return body
    return body.model_copy(update={"seed": int(identity["id"], 16) % MAX_SEED})


@router.get("/health", responses=responses(JSON, errors=(503,)))
async def health(request: Request) -> dict[str, Any]:
    """Whether the engine runs, and what the model can generate."""
    service = _service(request)
    if not service.engine.is_alive:
        raise ApiError("the engine's thread has ended; restart the server", status=503, kind="server_error")
    missing = service.preparer.missing
    return {
        "status": "ok",
        "model": service.name,
        "outputs": [m for m in ("text", "audio", "image") if m not in missing],
    }


@router.get("/metrics", response_class=Response, responses=responses("text/plain", errors=()))
async def metrics(request: Request) -> Response:
    """Counters for Prometheus."""
    return Response(_service(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/models", responses=responses(JSON, errors=(401,)))
async def models(request: Request) -> dict[str, Any]:
    """The one model."""
    service = _service(request)
    return {"object": "list", "data": [_model_entry(service)]}


@router.get("/v1/models/{name:path}", responses=responses(JSON, errors=(401, 404)))
async def model(request: Request, name: str) -> dict[str, Any]:
    """The one model, by its name."""
    service = _service(request)
    service.check_model(name)
    return _model_entry(service)


def _model_entry(service: Service) -> dict[str, Any]:
    return {"id": service.name, "object": "model", "created": service.started, "owned_by": "serving"}


@router.post("/v1/chat/completions", responses=responses(JSON, EVENTS))
async def chat(request: Request, body: ChatRequest) -> Response:
    """Answer a chat in text, or in text and speech; at once or streamed."""
    service = _service(request)
    replies = service.preparer.replies
    response = ChatResponse.of_request(service.name, _identity(request), replies.seconds)
    service.check_model(body.model)
    if body.wants_audio and body.stream and body.audio and body.audio.format != "pcm16":
        raise ApiError(
            f"audio.format: {body.audio.format!r} cannot be streamed in a chat; use 'pcm16'", "audio.format"
        )
    body = _with_own_seed(request, body)
    job, reply = await service.submit(lambda deliver: service.preparer.chat(body, deliver))
    if body.stream:
        wants_usage = bool(body.stream_options and body.stream_options.include_usage)
        pieces = _chat_pieces(response, reply, replies if body.wants_audio else None, wants_usage)
        return await service.stream_events(request, job, pieces)
    events = await service.while_connected(request, job, _collect(reply))
    audio = None
    if body.wants_audio:
        waveform = _audio(events)
        if not len(waveform) and service.preparer.has_words(_text(events)):
            raise _empty_speech()
        audio_format = body.audio.format if body.audio else "wav"
        rate = service.preparer.sampling_rate
        audio = audio_formats.encode(waveform, rate, "pcm" if audio_format == "pcm16" else audio_format)
        replies.keep(response.audio_id, _text(events), response.expires_at)
    return JSONResponse(response.whole(_text(events), reply.finished, audio))


async def _chat_pieces(
    response: ChatResponse, reply: JobEvents, audio: SpokenReplies | None, wants_usage: bool
) -> AsyncIterator[bytes]:
    """Chunks of a chat; those of a spoken one, which `audio` keeps, hold audio and its transcript."""
    role, text = {"role": "assistant"}, ""
    async for event in reply:
        text += event.text if isinstance(event, TextDelta) else ""
        delta: dict[str, Any] = {}
        if isinstance(event, AudioChunk):
            delta = {"audio": {"id": response.audio_id, "data": encode_base64(to_pcm16(event.waveform).tobytes())}}
        elif isinstance(event, TextDelta) and audio is not None:
            delta = {"audio": {"id": response.audio_id, "transcript": event.text}}
        elif isinstance(event, TextDelta):
            delta = {"content": event.text}
        yield response.chunk({**role, **delta})
        role = {}
    if audio is not None:
        audio.keep(response.audio_id, text, response.expires_at)
        yield response.chunk({**role, "audio": {"id": response.audio_id, "expires_at": response.expires_at}})
    yield response.chunk(role if audio is None else {}, reply.finished.reason)
    if wants_usage:
        yield response.usage_chunk(reply.finished)


@router.post("/v1/audio/speech", response_class=Response, responses=responses(*AUDIO))
async def speech(request: Request, body: SpeechRequest) -> Response:
    """Read a text aloud. The wav of a long text is sent while it is generated, so that its header has no length."""
    service, audio_format = _service(request), body.response_format
    service.check_model(body.model)
    body.raise_if_not_streamed()
    body = _with_own_seed(request, body)
    job, reply = await service.submit(lambda deliver: service.preparer.speech(body, deliver))
    rate = service.preparer.sampling_rate
    kind = f"audio/pcm;rate={rate};channels=1" if audio_format == "pcm" else audio_formats.MIME_TYPES[audio_format]
    headers = {"X-Sample-Rate": str(rate)}
    if body.is_whole(service.preparer.limits.whole_characters):
        waveform = _audio(await service.while_connected(request, job, _collect(reply)))
        if not len(waveform):
            raise _empty_speech()
        return Response(audio_formats.encode(waveform, rate, audio_format), media_type=kind, headers=headers)
    pieces = _audio_pieces(reply, audio_formats.STREAMED[audio_format](rate))
    return await service.stream(request, job, pieces, media_type=kind, headers=headers)


async def _audio_pieces(reply: JobEvents, encoder: audio_formats.PcmEncoder) -> AsyncIterator[bytes]:
    spoken = False
    async for event in reply:
        if isinstance(event, AudioChunk) and (data := encoder.push(event.waveform)):
            spoken = True
            yield data
    if not spoken:
        raise _empty_speech()


@router.post(
    "/v1/audio/transcriptions",
    responses=responses(JSON, "text/plain", EVENTS),
    openapi_extra=form(TranscriptionRequest, "file"),
)
async def transcriptions(request: Request) -> Response:
    """Write down what a recording says."""
    service = _service(request)
    fields, files = await _form(request, ("file",))
    body = validate(TranscriptionRequest, fields)
    service.check_model(body.model)
    if len(files) != 1:
        raise ApiError(f"file: {len(files)} files; send one recording", "file")
    job, reply = await service.submit(lambda deliver: service.preparer.transcription(body, files[0], deliver))
    if body.stream:
        return await service.stream_events(request, job, _transcript_pieces(reply))
    events = await service.while_connected(request, job, _collect(reply))
    if body.response_format == "text":
        return PlainTextResponse(_text(events) + "\n")
    text = _text(events)
    answer: dict[str, Any] = {"text": text, "usage": _transcript_usage(reply.finished)}
    if body.response_format == "verbose_json":
        language = "chinese" if re.search(f"[{HAN}]", text) else "english"
        answer |= {"task": "transcribe", "language": language, "duration": job.audio_seconds}
    return JSONResponse(answer)


async def _transcript_pieces(reply: JobEvents) -> AsyncIterator[bytes]:
    text = ""
    async for event in reply:
        if isinstance(event, TextDelta):
            text += event.text
            yield server_sent_event({"type": "transcript.text.delta", "delta": event.text})
    yield server_sent_event({"type": "transcript.text.done", "text": text, "usage": _transcript_usage(reply.finished)})


def _transcript_usage(finished: Finished) -> dict[str, Any]:
    counts = usage(finished)
    return {
        "type": "tokens",
        "input_tokens": counts["prompt_tokens"],
        "output_tokens": counts["completion_tokens"],
        "total_tokens": counts["total_tokens"],
    }


@router.post("/v1/images/generations", responses=responses(JSON))
async def image_generations(request: Request, body: ImageRequest) -> Response:
    """Draw images from a text."""
    return await _draw(request, body, [])


@router.post("/v1/images/edits", responses=responses(JSON), openapi_extra=form(EditRequest, "image", several=True))
async def image_edits(request: Request) -> Response:
    """Draw images from a text and images."""
    fields, files = await _form(request, ("image", "image[]"))
    if not files:
        raise ApiError("image: no file; send at least one image, or use /v1/images/generations", "image")
    return await _draw(request, validate(EditRequest, fields), files)


async def _draw(request: Request, body: ImageRequest, files: list[NamedBytes]) -> Response:
    service = _service(request)
    service.check_model(body.model)
    body = _with_own_seed(request, body)
    job, reply = await service.submit(lambda deliver: service.preparer.drawing(body, files, deliver))
    events = await service.while_connected(request, job, _collect(reply))
    images = next(event for event in events if isinstance(event, ImageDone)).images
    encoded = await asyncio.to_thread(lambda: [encode_image(image, body.output_format) for image in images])
    data = [{"b64_json": encode_base64(image)} for image in encoded]
    size = f"{images[0].width}x{images[0].height}"
    return JSONResponse({"created": int(time.time()), "data": data, "output_format": body.output_format, "size": size})


async def _on_api_error(request: Request, error: ApiError) -> Response:
    return error.response()


async def _on_validation_error(request: Request, error: RequestValidationError) -> Response:
    if isinstance(error.body, bytes):  # FastAPI does not read it as JSON
        return wrong_content_type(request.headers.get("content-type"), JSON).response()
    return from_validation(error.errors()).response()


async def _on_http_error(request: Request, error: HTTPException) -> Response:
    message = f"{request.method} {request.url.path}: {error.detail}"
    return ApiError(message, status=error.status_code, headers=error.headers).response()


async def _on_error(request: Request, error: Exception) -> Response:
    return server_error().response()  # the server raises the error again after the answer, into the log


def create_app(
    model,
    processor,
    limits: Limits | None = None,
    settings: EngineSettings | None = None,
    site: Site | None = None,
    fetcher: Fetcher | None = None,
) -> FastAPI:
    """The server as an ASGI app.

    Args:
        model: a `BailingMMNativeForConditionalGeneration` in eval mode; while the app runs, only its engine uses it.
        processor: its processor.
        limits, settings, site: see there; None takes the defaults.
        fetcher: reads URLs of requests; the default reads data URLs only.

    Raises:
        ValueError: see `Engine`.

    Returns:
        An app whose `state.service.engine` works between its start and its shutdown.
    """
    limits, site, metrics = limits or Limits(), site or Site(), Metrics()
    engine = Engine(model, processor.tokenizer, settings or EngineSettings(), metrics, not site.repeatable)
    load_components(model)
    preparer = Preparer(model, processor, limits, fetcher or Fetcher(), site.transcription_prompt)

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        engine.start()
        try:
            yield
        finally:
            await asyncio.to_thread(engine.close)

    app = FastAPI(title="Ming-Lite-Omni", lifespan=lifespan)
    app.state.service = Service(site.name, preparer, engine, metrics)
    app.include_router(router)
    app.add_middleware(RemarksMiddleware)
    app.add_middleware(
        AdmissionMiddleware,
        limits=limits,
        metrics=metrics,
        check_room=engine.check_room,
        api_key=site.api_key,
    )
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_error)
    return app


__all__ = ["create_app"]
