"""`python -m tests.ray.kuberay.door HOST PORT SOCKET`: a TCP port of a network that leads to a socket outside of it."""

from __future__ import annotations

import asyncio
import sys

from launchyard.launcher.sandbox.ray.relay import pump


async def serve(host: str, port: int, path: str) -> None:
    async def on_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(path)
        await asyncio.gather(pump(reader, back), pump(there, writer))

    server = await asyncio.start_server(on_client, host, port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
