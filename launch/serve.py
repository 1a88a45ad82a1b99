"""A server that draws, paints over, captions and answers, in the shapes of OpenAI's API.

    python -m launch.serve experiments/miniature/weights/decoder
    python -m launch.serve RUN --bank BANK --port 8000
    python -m launch.serve RUN --host 0.0.0.0 --api-key-file KEY --slots 32

    curl http://127.0.0.1:8000/v1/images/generations -H "Content-Type: application/json" \\
        -d '{"prompt": "a large red circle at b3 on sand", "guidance": 3, "seed": 1}'

Requests of different prompts, lengths and samplers are drawn side by side. docs/server.md explains
every route and field.
"""

import dataclasses
import logging
import math
import sys
from pathlib import Path
from typing import Annotated

import tyro

from cm3jax.config import ONE_DEVICE, CacheType, MeshConfig, WeightType
from cm3jax.errors import UserError
from cm3jax.generation import loading
from cm3jax.serve.limits import Limits
from launch.cli import parse
from launch.env import main
from launch.parts import naming_commands_of

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclasses.dataclass(frozen=True)
class Options:
    """What to serve, where, and to whom."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """The decoder: a run directory, one of its checkpoints, exported weights, or hf:OWNER/NAME."""
    bank: str = ""
    """The memory bank to search instead of the run's own."""
    host: str = "127.0.0.1"
    """The address to listen at; by default only this machine can call."""
    port: int = 8000
    """The port; 0 takes a free one, which is told."""
    name: str = ""
    """The model's name in the API; by default that of the run's folder."""
    api_key_file: str = ""
    """A file whose first line is the key that clients must send; without one nobody is asked."""
    slots: int = 16
    """Samples that are drawn side by side, of each size of prompt and answer."""
    limits: Limits = dataclasses.field(default_factory=Limits)
    """What one request, and all of them together, may take."""
    weights: WeightType = ""
    """What the layers' matrices are kept in, instead of the run's `model.weights`."""
    cache: CacheType = ""
    """What keys and values are kept in, instead of the run's `model.cache`."""
    prefix_cache: int = 256
    """MiB for what was read of prompts: those that begin alike, say with the same documents, are
    read only where they differ. 0 keeps nothing."""
    mesh: MeshConfig = ONE_DEVICE
    """The devices that share the work; `--mesh.data -1` takes all."""

    def __post_init__(self):
        if not 0 <= self.port < 65536:
            raise UserError(f"--port {self.port} must be from 0 to 65535.")
        if self.prefix_cache < 0:
            raise UserError(f"--prefix-cache {self.prefix_cache} must be at least 0.")
        if self.slots < 1:
            raise UserError(f"--slots {self.slots} must be at least 1.")
        if self.host not in _LOOPBACK and not self.api_key_file:
            raise UserError(
                f"--host {self.host} lets other machines call; give --api-key-file FILE too, or "
                "stay on 127.0.0.1."
            )

    @property
    def key(self) -> str:
        """The key that clients must send; empty for none."""
        if not self.api_key_file:
            return ""
        with Path(self.api_key_file).open("rb") as file:
            key = file.readline(4096).strip()  # a device has no end
        if not key:
            raise UserError(f"--api-key-file {self.api_key_file} is empty; write a key into it.")
        if not (key.isascii() and key.decode("ascii").isprintable()):
            raise UserError(
                f"--api-key-file {self.api_key_file} holds what no client can send as a key; write "
                "letters, digits and signs of ASCII into its first line."
            )
        return key.decode("ascii")


def command(argv: list[str]) -> None:
    """Load the run and serve it until a signal comes; then finish what is running. A second signal
    ends that with a sentence to each client, a third one the process."""
    options = parse(Options, argv, "Serve a decoder over HTTP.")
    try:
        import uvicorn

        from cm3jax.serve.app import Server, make_app
        from cm3jax.serve.ending import EndingServer
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; run pip install -e '.[serve]'.") from None
    key = options.key
    generator = loading.load(
        options.run,
        options.bank,
        options.mesh,
        options.weights,
        options.cache,
        options.prefix_cache << 20,
    )
    if options.bank:
        with naming_commands_of(options.run, options.bank):
            _ = generator.retriever  # what does not fit is said before anybody calls
    name = options.name or Path(options.run).absolute().name
    server = Server(generator, name, options.slots, options.limits)
    hosts = frozenset(_LOOPBACK) if options.host in _LOOPBACK else frozenset()
    seconds = options.limits.seconds
    config = uvicorn.Config(
        make_app(server, key, hosts),
        host=options.host,
        port=options.port,
        log_level="warning",
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=None if math.isinf(seconds) else math.ceil(seconds),
    )
    logging.basicConfig(level=logging.WARNING)
    socket = _bound(config)
    # The engine takes the interpreter back many times between two chunks; 5 ms of others are long.
    sys.setswitchinterval(0.0005)
    where = f"[{options.host}]" if ":" in options.host else options.host
    print(f"serving {name} at http://{where}:{socket.getsockname()[1]}", flush=True)
    EndingServer(config, server.studio.engine).run([socket])


def _bound(config):
    """The socket to listen at; `UserError` where the address is taken or is not this machine's."""
    import socket

    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    out = socket.socket(family=family)
    out.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        out.bind((config.host, config.port))
        out.listen(config.backlog)  # who reads the address may call at once
    except OSError as error:
        out.close()
        raise UserError(
            f"can't listen at {config.host}:{config.port} ({error.strerror}); give another --port."
        ) from None
    return out


if __name__ == "__main__":
    main(command)
