"""A search page on this machine: `vatt search --serve`. Gradio asks and shows; the files come by routes of our own.

Whatever a browser asks for comes from here or is refused: pages and scripts of Gradio, key frames and files that the
index holds. Gradio's share, analytics and fonts from elsewhere stay off, and other sites cannot ask in the visitor's
name: their origin, their frames and names that lead here by accident are refused.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import os
import socket
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from ...data.decoding.container import BadClip
from ...data.shards.index import tar_of
from ...errors import MissingPackage, RunError, VattError
from ...runtime.forms import printable
from .cards import STYLE, card, key_frame
from .index import Query, SearchIndex

POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; "
    "style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "worker-src 'self' blob:; frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
TOP = 12  # results, unless asked for others
# The address in the browser holds what is asked, and the moment that is played.
SCRIPT = """<script>
let shown = null;
new MutationObserver(() => {
  const found = document.querySelector("#found [data-address]");
  if (!found || found === shown) return;
  shown = found;
  history.replaceState(null, "", found.dataset.address);
}).observe(document, {childList: true, subtree: true});
document.addEventListener("play", event => {
  const hit = event.target.closest(".hit-place");
  if (!hit) return;
  const address = new URL(location.href);
  address.searchParams.set("id", hit.dataset.id);
  history.replaceState(null, "", address);
}, true);
</script>"""
LOOK = (
    STYLE.replace("body {", ".vatt-page {")
    .replace("color-scheme: light dark; ", "")
    .replace("@media (prefers-color-scheme: dark) {\n  :root {", ".dark {\n  & {")
    + "footer { display: none !important; } .hit strong { color: var(--ink); } .hit a { padding: 0; }"
    + ".vatt-page, .vatt-page * { --block-padding: 0; } .vatt-page { padding: 0; background: none; }"
)


class Page:
    """The page of one index: what Gradio calls."""

    def __init__(self, index: SearchIndex) -> None:
        self.index = index

    def show(
        self, query: Query | None, top: float | None, where: str | None, best_only: bool | None, chosen: str = ""
    ) -> str:
        """Return the HTML of the answer; an error of the visitor's is a line of it. Fields not yet seen hold None."""
        if query is None:
            return f"<p>{len(self.index):,} moments to search in: ask with words, a sound or a video.</p>"
        per_file = 1 if best_only else None
        try:
            hits: list[dict[str, Any]] = []
            if chosen:
                hits = [h for h in self.index.answer(Query("like", chosen), 3)["results"] if h["id"] == chosen]
            answer = self.index.answer(query, int(top or TOP), (where or "").strip() or None, per_file)
        except (VattError, OSError) as error:
            return f'<p class="warning" role="alert">{escape(printable(str(error)))}</p>'
        hits = [{**hit, "rank": "the moment of this address:"} for hit in hits] + answer["results"]
        warnings = "".join(f'<p class="warning">{escape(printable(line))}</p>' for line in answer["warnings"])
        asked = {"where": where or "", "best": "1" if best_only else "", "top": f"{top:g}" if top else ""}
        asked |= {"q": query.query} if query.kind == "text" else {"like": query.query} if query.kind == "like" else {}
        asked = {name: value for name, value in asked.items() if value}
        cards = "".join(self.card(hit, asked) for hit in hits)
        address = escape("?" + urlencode(asked | ({"id": chosen} if chosen else {})))
        return f'{warnings}<div class="hits" data-address="{address}">{cards or "nothing was found"}</div>'

    def card(self, hit: dict[str, Any], asked: dict[str, str]) -> str:
        frame = urlencode({"path": hit["path"], "start": hit["start"], "end": hit["end"] or ""})
        links = (
            f'<p class="soft"><a href="?{urlencode({"like": hit["id"]})}">more like this</a> · '
            f'<a href="?{escape(urlencode({**asked, "id": hit["id"]}))}">address of this moment</a></p>'
        )
        inside = card(hit, escape(f"/frame?{frame}"), f"/clip?{urlencode({'path': hit['path']})}", hit["path"], links)
        return f'<div class="hit-place" data-id="{hit["id"]}">{inside}</div>'

    def asked(self, text: str | None, sound: str | None, film: str | None) -> Query | None:
        """The query that the fields hold; words before files."""
        for kind, query in (("text", (text or "").strip()), ("audio", sound), ("video", film)):
            if query:
                return Query(kind, query)
        return None

    def blocks(self, gradio: Any) -> Any:
        """Return the page as Gradio has it."""
        with gradio.Blocks(title="vatt search", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
            with gradio.Row():
                text = gradio.Textbox(
                    label="What should be seen or heard", placeholder="a dog pulls a sled", scale=4, elem_id="words"
                )
                go = gradio.Button("Search", variant="primary", scale=1, min_width=100)
            with gradio.Accordion("A sound or a video as the query", open=False), gradio.Row():
                sound = gradio.Audio(label="Sound", sources=["upload", "microphone"], type="filepath")
                film = gradio.Video(label="Video", sources=["upload"])
            with gradio.Accordion("Filters", open=False), gradio.Row():
                where = gradio.Textbox(label="Only where (archives)", placeholder="label = 'dog' and start > 60")
                best_only = gradio.Checkbox(label="Only the best moment of each file")
                top = gradio.Slider(4, 60, value=TOP, step=4, label="Results")
            found = gradio.HTML(self.show(None, None, None, None), elem_classes="vatt-page", elem_id="found")
            filters = [top, where, best_only]

            def from_address(request: Any) -> tuple[Any, ...]:
                """What the address names; the rest stays as it is, as a visitor may have begun to type."""
                asked, left = dict(request.query_params), gradio.skip()
                words, like, chosen = asked.get("q", ""), asked.get("like", ""), asked.get("id", "")
                query = Query("like", like) if like else Query("text", words) if words else None
                if query is None and chosen:
                    query = Query("like", chosen)
                count = min(max(float(asked["top"]), 1), 60) if asked.get("top", "").isdecimal() else None
                held, best = asked.get("where", ""), asked.get("best") == "1"
                shown = left if query is None else self.show(query, count, held, best, chosen)
                return words or left, held or left, best or left, count or left, shown

            # Gradio looks for this type, and cannot read it as text: its name is not one of this module.
            from_address.__annotations__["request"] = gradio.Request

            def from_fields(words: str, heard: str | None, seen: str | None, *flags: Any) -> str:
                return self.show(self.asked(words, heard, seen), *flags)

            fields = [text, sound, film, *filters]
            for event in (go.click, text.submit, sound.change, film.change):
                event(from_fields, fields, found, api_visibility="private")
            blocks.load(from_address, None, [text, where, best_only, top, found], api_visibility="private")
        return blocks


class Guard:
    """ASGI middleware: refuses what other sites ask for and names that are not this server's; adds `HEADERS`."""

    def __init__(self, app: Any, host: str) -> None:
        self.app, self.names = app, {host, "localhost", "127.0.0.1", "::1"}
        self.open = host not in self.names - {host} and not _is_loopback(host)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if scope["type"] == "websocket" or not self.allows(scope["path"], headers):
            from starlette.responses import PlainTextResponse

            await PlainTextResponse("refused", 403)(scope, receive, send)
            return

        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = [(name, value) for name, value in message["headers"] if name.decode().lower() not in HEADERS]
                message["headers"] = own + [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            await send(message)

        await self.app(scope, receive, sending)

    def allows(self, path: str, headers: dict[str, str]) -> bool:
        host = headers.get("host", "")
        name = urlsplit(f"//{host}").hostname or ""
        if name not in self.names and not (self.open and (_is_address(name) or name == socket.gethostname())):
            return False
        if (origin := headers.get("origin")) and urlsplit(origin).netloc != host:
            return False
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return path == "/" and headers.get("sec-fetch-dest") == "document"  # a link to a search
        return "proxy=" not in path  # Gradio's way to other servers


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(name: str) -> bool:
    return _is_address(name) and ipaddress.ip_address(name).is_loopback


def make_app(index: SearchIndex, host: str) -> Any:
    """Return the ASGI application. Raises `MissingPackage` without Gradio."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
        from fastapi import FastAPI, HTTPException, Response
        from fastapi.responses import FileResponse
    except ImportError as error:
        raise MissingPackage("--serve needs Gradio: pip install -e '.[serve]' in the project's folder") from error
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    def require(path: str) -> None:
        if not index.holds(path):
            raise HTTPException(404, "not in the index")

    @app.get("/clip")
    def clip(path: str) -> FileResponse:
        require(path)
        if tar_of(Path(path)) or not Path(path).is_file():
            raise HTTPException(404, "not a file any more, or in a tar")
        return FileResponse(path)  # answers byte ranges

    @functools.lru_cache(1000)
    def picture(path: str, start: float, end: float | None) -> bytes:
        return key_frame(path, start, end)

    @app.get("/frame")
    def frame(path: str, start: float, end: str = "") -> Response:
        require(path)
        try:
            shown = picture(path, start, float(end) if end else None)
        except (BadClip, ValueError) as error:
            raise HTTPException(404, "no picture there") from error
        return Response(shown, media_type="image/jpeg", headers={"cache-control": "max-age=3600"})

    theme = gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    blocks = Page(index).blocks(gradio)
    mounted = gradio.mount_gradio_app(
        app,
        blocks,
        path="/",
        server_name=host,
        footer_links=[],
        ssr_mode=False,
        enable_monitoring=False,
        max_file_size="1gb",
        theme=theme,
        css=LOOK,
        head=SCRIPT,
    )
    return Guard(mounted, host)


def serve(index: SearchIndex, host: str, port: int) -> None:
    """Answer browsers until interrupted. Raises `RunError` for an address that cannot be had."""
    app = make_app(index, host)
    import uvicorn

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except OSError as error:
            reason = error.strerror or str(error)
            raise RunError(f"port {port} of {host} cannot be had ({reason}); give another --port") from error
        name = f"[{host}]" if ":" in host else host
        print(f"{len(index):,} moments at http://{name}:{listening.getsockname()[1]} (Ctrl-C ends it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])
