"""Pushing to a registry with nothing but HTTP."""

from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp

from imagekit.making import Made, digest


@dataclass
class Pusher:
    session: aiohttp.ClientSession
    base: str

    async def blob(self, repository: str, data: bytes) -> int:
        url = f"{self.base}/v2/{repository}/blobs/uploads/?digest={digest(data)}"
        async with self.session.post(url, data=data) as answer:
            return answer.status

    async def manifest(self, repository: str, name: str, data: bytes, media_type: str) -> tuple[int, str]:
        url = f"{self.base}/v2/{repository}/manifests/{name}"
        async with self.session.put(url, data=data, headers={"Content-Type": media_type}) as answer:
            return answer.status, await answer.text()

    async def image(self, repository: str, made: Made, *, tag: str = "") -> None:
        for blob in made.blobs.values():
            assert await self.blob(repository, blob) == 201
        status, text = await self.manifest(repository, tag or made.digest, made.manifest, made.media_type)
        assert status == 201, text

    async def get(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        async with self.session.get(f"{self.base}/v2/{path}", headers=headers) as answer:
            return answer.status, await answer.read()

    async def delete(self, path: str) -> int:
        async with self.session.delete(f"{self.base}/v2/{path}") as answer:
            return answer.status
