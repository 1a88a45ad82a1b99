"""What a server counts, in the format of Prometheus."""

import prometheus_client as prometheus
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cm3jax.serve.engine import DrawingEngine

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class _Gauges(Collector):
    """The engine's load at the time of asking."""

    def __init__(self, engine: DrawingEngine):
        self._engine = engine

    def collect(self):
        """Gauges of the queue, the slots and the decoding."""
        load, rates = self._engine.load, self._engine.meter.report(0)
        named: dict[str, tuple[str, float]] = {
            "cm3jax_requests_open": ("Requests that wait or run", load["open"]),
            "cm3jax_samples_waiting": ("Samples without a slot", load["waiting"]),
            "cm3jax_slots_busy": ("Slots that decode a sample", load["busy"]),
            "cm3jax_slots": ("Slots of each kind of request", load["slots"]),
            "cm3jax_decode_tokens_per_second": (
                "Tokens that samples emitted per second of decoding",
                rates["decode_tokens_per_second"] or 0.0,
            ),
            "cm3jax_decode_tokens_per_pass": (
                "Tokens that a sample emits per pass: more than 1 where guesses are right",
                rates["tokens_per_pass"] or 0.0,
            ),
            "cm3jax_compile_seconds": (
                "Seconds that were spent on chunks and prompts whose programs had to be compiled",
                rates["compile_seconds"],
            ),
            "cm3jax_rows_busy": (
                "Share of the slots that decoded a sample, of those that chunks ran",
                rates["busy_rows"] or 0.0,
            ),
            "cm3jax_prefix_hit_rate": (
                "Share of the prompts' tokens whose keys and values were kept from earlier prompts",
                rates["prefix_hit_rate"] or 0.0,
            ),
        }
        found: list[Metric] = [
            GaugeMetricFamily(name, help_, value) for name, (help_, value) in named.items()
        ]
        tokens = self._engine.tokens
        return [*found, CounterMetricFamily("cm3jax_tokens", "Tokens of finished samples", tokens)]


class Metrics:
    """Counters and histograms of one server."""

    def __init__(self) -> None:
        self._registry = prometheus.CollectorRegistry()
        self._requests = prometheus.Counter(
            "cm3jax_requests", "Requests by route and status", ("route", "status"),
            registry=self._registry,
        )  # fmt: skip
        self._seconds = prometheus.Histogram(
            "cm3jax_request_seconds", "From a request's start to its answer's end", ("route",),
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self.first_rows = prometheus.Histogram(
            "cm3jax_first_rows_seconds", "From a request's start to its first tokens",
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip

    def watch(self, engine: DrawingEngine) -> None:
        """Tell of an engine's load, too."""
        self._registry.register(_Gauges(engine))

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return prometheus.generate_latest(self._registry)
