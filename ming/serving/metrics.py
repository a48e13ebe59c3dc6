"""What the server counts, for Prometheus; every app has a registry of its own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters, gauges and histograms; their names begin with `ming_`."""

    def __init__(self):
        self.registry = CollectorRegistry()
        own = {"registry": self.registry}
        self.requests = Counter("ming_requests", "Answered HTTP requests", ["route", "status"], **own)
        self.jobs = Counter("ming_jobs", "Jobs by how they ended", ["kind", "outcome"], **own)
        self.seconds = Histogram("ming_job_seconds", "Seconds in the engine", ["kind"], buckets=SECONDS, **own)
        self.queue_seconds = Histogram("ming_queue_seconds", "Seconds before the engine", buckets=SECONDS, **own)
        self.batch_rows = Histogram("ming_batch_rows", "Chats that get a token at once", buckets=ROWS, **own)
        self.waiting = Gauge("ming_jobs_waiting", "Requests being prepared or waiting", **own)
        self.running = Gauge("ming_jobs_running", "Jobs in the engine", **own)
        self.prompt_tokens = Counter("ming_prompt_tokens", "Tokens of prompts read", **own)
        self.new_tokens = Counter("ming_new_tokens", "Tokens of replies written", **own)

    def text(self) -> bytes:
        """All of them in Prometheus' format."""
        return generate_latest(self.registry)


__all__ = ["Metrics"]
