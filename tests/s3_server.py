"""An S3 store on this machine: moto's server, behind a door that notes what is asked, flips bits and breaks off."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

BUCKET = "bucket"
REGION = "us-east-1"
# What a machine that may read it knows; moto takes any key, and its clients refuse to ask without one.
KEYS = {"AWS_ACCESS_KEY_ID": "here", "AWS_SECRET_ACCESS_KEY": "secret-of-here", "AWS_DEFAULT_REGION": REGION}
# What a machine without credentials needs, so that its client does not look for those of a cloud machine.
NOBODY = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_DEFAULT_REGION": REGION}


@dataclass
class S3:
    """What the door does.

    Attributes:
        flip: Keys whose first byte is wrong, and how often it still is.
        cut: Keys that break off where they hold this byte, each time they are asked for it.
        seen: Called with each range that is asked for.
        asked: Key and first byte of each read of an object.
    """

    port: int = 0
    flip: dict[str, int] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    seen: Callable[[str, int], Any] = lambda key, start: None
    asked: list[tuple[str, int]] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> Any:
        """A client of boto3 with rights to all, that puts objects without a CRC of their own, as most there are."""
        import boto3
        from botocore.config import Config

        plain = Config(request_checksum_calculation="when_required")
        return boto3.client("s3", endpoint_url=self.endpoint, region_name=REGION, aws_access_key_id="owner",
                            aws_secret_access_key="secret-of-owner", config=plain)  # fmt: skip

    def put(self, key: str, content: bytes, **more: str) -> None:
        """An object that goes up in one part."""
        self.client().put_object(Bucket=BUCKET, Key=key, Body=content, **more)

    def put_parts(self, key: str, *parts: bytes) -> None:
        """An object that goes up in several parts."""
        client, where = self.client(), {"Bucket": BUCKET, "Key": key}
        upload = client.create_multipart_upload(**where)["UploadId"]
        told = [
            client.upload_part(**where, UploadId=upload, PartNumber=number, Body=part)
            for number, part in enumerate(parts, 1)
        ]
        done = [{"ETag": part["ETag"], "PartNumber": number} for number, part in enumerate(told, 1)]
        client.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": done})

    def quiet(self) -> None:
        """Do nothing to what passes, from now on."""
        self.flip, self.cut, self.asked, self.seen = {}, {}, [], lambda key, start: None

    def door(self, app: Callable[..., Any], environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        """Pass on to moto, and change the answer where the attributes say so."""
        key = environ["PATH_INFO"].encode("latin-1").decode().removeprefix(f"/{BUCKET}").lstrip("/")
        answer = app(environ, start_response)
        if environ["REQUEST_METHOD"] != "GET" or not environ.get("HTTP_RANGE"):
            return answer
        start = int(environ["HTTP_RANGE"].removeprefix("bytes=").partition("-")[0])
        self.asked.append((key, start))
        self.seen(key, start)
        content = bytearray(b"".join(answer))
        if start == 0 and self.flip.get(key, 0):
            self.flip[key] -= 1
            content[0] ^= 1
        if key in self.cut and start <= self.cut[key] < start + len(content):
            return _broken(bytes(content), self.cut[key] - start)
        return [bytes(content)]


def _broken(content: bytes, after: int) -> Iterator[bytes]:
    yield content[:after]
    raise ConnectionAbortedError


@contextlib.contextmanager
def serving(**objects: bytes) -> Iterator[S3]:
    """A store whose only bucket holds `objects`."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Silent(WSGIRequestHandler):
        def log(self, *_: Any) -> None:
            """Say nothing."""

    s3, app = S3(), DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, lambda e, s: s3.door(app, e, s), threaded=True, request_handler=Silent)
    s3.port = server.server_port
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        s3.client().create_bucket(Bucket=BUCKET)
        for name, content in objects.items():
            s3.put(name, content)
        yield s3
    finally:
        server.shutdown()
        server.server_close()
