"""The registry's web page, in a real browser: what it shows, whom it lets in, and what it does not run."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import bcrypt
import msgspec
import pytest

from harness.browser import Browser, open_browser
from harness.needs import require_programs
from imagekit.making import Made, index, make
from imagekit.pushing import Pusher
from wherry.aio import Background
from wherry.registry.config import Config
from wherry.registry.folder import open_folder
from wherry.registry.main import open_server

APP = make([{"a": b"1" * 200_000}, {"b": b"2"}])
EVIL = '<img src=x onerror="window.pwned=1">'
BOTH = index([(APP, {"os": "linux", "architecture": "amd64"}), (APP, {"os": EVIL, "architecture": "arm64"})])


class Site:
    """A registry with something in it."""

    def __init__(self, url: str, push: Pusher) -> None:
        self.url = url
        self.push = push


async def serve(root: Path, down: AsyncExitStack, *, auth: bool) -> Site:
    root.mkdir()
    keys: dict[str, object] = {"root": str(root), "listen": ["127.0.0.1:0"]}
    headers = {}
    if auth:
        hashed = bcrypt.hashpw("sëcret".encode(), bcrypt.gensalt(4)).decode()
        (root / "htpasswd").write_text(f"ann:{hashed}\n")
        keys["auth"] = {"htpasswd": str(root / "htpasswd")}
        headers = {"Authorization": aiohttp.encode_basic_auth("ann", "sëcret", "utf-8")}
    store = open_folder(root)
    down.push_async_callback(store.close)
    background = Background()
    down.push_async_callback(background.close)
    _, (address,) = await open_server(msgspec.convert(keys, Config), store, store, background, down)
    session = await down.enter_async_context(aiohttp.ClientSession(headers=headers))
    push = Pusher(session, f"http://{address}")
    await push.image("team/app", APP, tag="v1")
    status, text = await push.manifest("team/app", "both", *BOTH)
    assert status == 201, text
    return Site(f"http://{address}", push)


@pytest.fixture
async def down() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as made:
        yield made


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[Browser]:
    require_programs("chromium")
    async with open_browser(tmp_path / "profile") as made:
        yield made


async def follow(browser: Browser, text: str) -> None:
    """Click on the link called `text` and wait for what is behind it."""
    wanted = await browser.evaluate(
        f"(() => {{ const a = [...document.links].find(a => a.textContent === {json.dumps(text)});"
        " a.click(); return a.getAttribute('href'); })()"
    )
    await browser.until(f"document.body.dataset.shown === {json.dumps(wanted)}")


async def row(browser: Browser, text: str) -> list[str]:
    """The cells of the row that begins with `text`."""
    found = await browser.evaluate(
        "[...document.querySelectorAll('tbody tr')].map(r => [...r.cells].map(c => c.innerText))"
    )
    return next(cells for cells in found if cells[0] == text)


def layer_size(made: Made, place: int) -> str:
    size = len(made.layers[place])
    return f"{size} B" if size < 1000 else f"{size / 1000:.1f} kB"


async def test_the_page_leads_from_repositories_over_tags_and_platforms_to_layers(
    tmp_path: Path, down: AsyncExitStack, browser: Browser
) -> None:
    site = await serve(tmp_path / "registry", down, auth=False)
    await browser.open(site.url + "/")
    await browser.until("document.querySelector('tbody a')")
    assert (await row(browser, "team/app"))[1] == "2"
    await follow(browser, "team/app")
    name, digest, pushed, _ = await row(browser, "v1")
    assert (name, digest, pushed) == ("v1", APP.digest[7:19], "just now")
    await follow(browser, "both")
    assert f"docker pull {site.url[7:]}/team/app:both" in await browser.text()
    await browser.until("[...document.querySelectorAll('td.number')].every(cell => cell.textContent)")
    total = sum(map(len, APP.blobs.values()))
    assert await row(browser, "linux/amd64") == ["linux/amd64", APP.digest[7:19], f"{total / 1000:.1f} kB"]
    await follow(browser, "linux/amd64")
    assert "2 layers" in await browser.text()
    for place, layer in enumerate(APP.layer_digests):
        _, digest, kind, size = await row(browser, str(place + 1))
        assert (digest, size) == (layer[7:19], layer_size(APP, place))
        assert kind == "application/vnd.oci.image.layer.v1.tar+gzip"
    await follow(browser, "All repositories")
    assert (await row(browser, "team/app"))[0] == "team/app"
    assert browser.complaints == []


async def test_what_others_wrote_is_shown_and_never_run(tmp_path: Path, down: AsyncExitStack, browser: Browser) -> None:
    site = await serve(tmp_path / "registry", down, auth=False)
    await browser.open(site.url + "/#/team%2Fapp/both")
    await browser.until("document.body.dataset.shown")
    assert (await row(browser, f"{EVIL}/arm64"))[0] == f"{EVIL}/arm64"
    assert await browser.evaluate("document.images.length") == 0
    assert browser.complaints == []
    await browser.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.pwned = 1'}))"
    )
    assert await browser.evaluate("window.pwned ?? 0") == 0, "the policy of the page lets foreign scripts run"
    assert any("Content Security Policy" in each for each in browser.complaints)


async def test_a_registry_with_passwords_is_shown_to_who_signs_in(
    tmp_path: Path, down: AsyncExitStack, browser: Browser
) -> None:
    site = await serve(tmp_path / "registry", down, auth=True)
    await browser.open(site.url + "/")
    await browser.until("document.querySelector('form')")
    assert "team/app" not in await browser.text()

    await browser.evaluate(sign_in("ann", "wrong"))
    await browser.until("document.querySelector('.error')")
    assert "incorrect username or password" in await browser.text()

    await browser.evaluate(sign_in("ann", "sëcret"))
    await browser.until("document.querySelector('tbody a')")
    assert (await row(browser, "team/app"))[1] == "2"
    assert await browser.evaluate("document.getElementById('who').textContent") == "ann"
    await follow(browser, "team/app")
    await follow(browser, "v1")
    assert "2 layers" in await browser.text()
    assert await browser.evaluate("document.cookie + JSON.stringify({...localStorage, ...sessionStorage})") == "{}"
    assert browser.complaints == []


def sign_in(user: str, password: str) -> str:
    return (
        "(() => { const [u, p] = document.querySelectorAll('input');"
        f" u.value = {json.dumps(user)}; p.value = {json.dumps(password)};"
        " document.querySelector('form button').click(); })()"
    )


async def test_a_long_list_comes_page_by_page(tmp_path: Path, down: AsyncExitStack, browser: Browser) -> None:
    site = await serve(tmp_path / "registry", down, auth=False)
    for number in range(205):
        await site.push.manifest("team/app", f"t{number:03}", APP.manifest, APP.media_type)
    await browser.open(site.url + "/#/team%2Fapp")
    await browser.until("document.querySelectorAll('tbody tr').length === 200")
    await browser.evaluate("document.querySelector('button').click()")
    await browser.until("document.querySelectorAll('tbody tr').length === 207")
    assert await browser.evaluate("document.querySelector('button')") is None


async def test_no_repository_no_tag_and_no_manifest_are_said_in_words(
    tmp_path: Path, down: AsyncExitStack, browser: Browser
) -> None:
    site = await serve(tmp_path / "registry", down, auth=False)
    await browser.open(site.url + "/#/no%2Fsuch")
    await browser.until("document.querySelector('.error')")
    assert "repository name not known to registry: no/such" in await browser.text()
    await browser.open(site.url + "/#/team%2Fapp/gone")
    await browser.until("document.body.dataset.shown === '#/team%2Fapp/gone'")
    assert "repository team/app has no manifest gone" in await browser.text()
