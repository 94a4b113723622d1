"""`python -m launchyard.launcher.sandbox.ray.relay SOCKET HOST PORT`: a relay into a network of its own.

Clients of the socket talk to HOST:PORT as it is seen from here. This process also keeps that network alive.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys

CHUNK = 1 << 16


async def serve(path: str, host: str, port: int) -> None:
    """Serves until this process is ended."""

    async def on_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(host, port)
        except OSError:  # nobody listens yet: the client sees its connection closed
            writer.close()
            return
        await asyncio.gather(pump(reader, back), pump(there, writer))

    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    os.umask(0o177)
    server = await asyncio.start_unix_server(on_client, path)
    await server.serve_forever()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copies one direction, to its end."""
    with contextlib.suppress(OSError):
        while chunk := await reader.read(CHUNK):
            writer.write(chunk)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], sys.argv[2], int(sys.argv[3])))
