"""The page, in gradio: prompt, adapter, seed and a strength slider, two pictures, what is known of them, and likes."""

from __future__ import annotations

import shutil
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from . import words
from .likes import as_zip, count, keep
from .studio import Drawn, Studio, View, Wish

BIG = 512  # pixels to which smaller pictures are enlarged
MOST_EXAMPLES = 6
SEEDS = 2**31
TITLE = "Reward dial"
# Fonts of the person's own machine: the page asks nobody else for anything.
_FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}


def launch(page: gr.Blocks, **options: Any) -> str:
    """Serve the page in the background, and say where.

    Args:
        page: what `build` made.
        **options: of gradio's launch, such as server_name, server_port and share.

    Raises:
        OSError: the port is taken.
    """
    theme = gr.themes.Base(primary_hue="orange", **_FONTS)
    css = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    looks: dict[str, Any] = {"theme": theme, "css": css, "footer_links": [], "ssr_mode": False, "quiet": True}
    _, local, shared = page.queue(default_concurrency_limit=None).launch(prevent_thread_lock=True, **looks, **options)
    return str(shared or local)


def serve(model: str, adapters: Sequence[str], prompts: Sequence[str]) -> None:
    """The page on a server of somebody else's choice, such as a Space: each visitor's likes are the visitor's own.

    Args:
        model, adapters: as `Studio.open`.
        prompts: to begin with.
    """
    page = build(Studio.open(model, adapters), prompts)
    launch(page)
    page.block_thread()


def build(studio: Studio, prompts: Sequence[str], likes: Path | None = None) -> gr.Blocks:
    """The page of a studio.

    Args:
        studio: draws.
        prompts: the first is drawn when the page is opened, the others can be chosen.
        likes: the folder that liked and disliked pictures go to; None keeps those of each visitor apart and offers
            them as a file.
    """
    return _Page(studio, likes).blocks(prompts)


class _Page:
    def __init__(self, studio: Studio, likes: Path | None) -> None:
        self.studio, self.likes = studio, likes
        self.wanted: dict[str | None, Wish] = {}  # by session
        self.sent: dict[str | None, list[Drawn | None]] = {}  # by session: the pictures that its page has

    def blocks(self, prompts: Sequence[str]) -> gr.Blocks:
        """Components first, then what happens when."""
        names = list(self.studio.adapters)
        with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
            about = gr.HTML(self.about(names[0]))
            prompt = gr.Textbox(prompts[0] if prompts else "", label="Prompt", lines=1, max_lines=3, elem_id="prompt")
            with gr.Row(visible=len(prompts) > 1, elem_classes="examples"):
                examples = [gr.Button(text, size="sm", min_width=80) for text in prompts[:MOST_EXAMPLES]]
            with gr.Row():
                adapter = gr.Dropdown(names, value=names[0], label="Adapter", visible=len(names) > 1, min_width=200)
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=SEEDS - 1, min_width=120)
                another = gr.Button("Another seed", size="md", min_width=130, scale=0, elem_id="another")
            strength = gr.Slider(**self.slider(names[0]), label="Strength", elem_id="strength")
            with gr.Row():
                looks: dict[str, Any] = {"interactive": False, "buttons": [], "format": "png", "min_width": 260}
                before = gr.Image(label="Strength 0, the base model", elem_id="before", **looks)
                after = gr.Image(label="At this strength", elem_id="after", **looks)
            numbers = gr.HTML(elem_id="numbers")
            with gr.Row():
                like = gr.Button("Like", elem_id="like", min_width=120)
                dislike = gr.Button("Dislike", elem_id="dislike", min_width=120)
            told = gr.Markdown(self.about_likes(), elem_id="kept", elem_classes="kept")
            download = gr.DownloadButton("Download your likes", visible=False, size="sm")
            on_page, own_folder = gr.State(None), gr.State(None, delete_callback=_remove)

            quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
            draw: dict[str, Any] = {
                "fn": self.redraw,
                "inputs": [adapter, prompt, seed, strength],
                "outputs": [before, after, numbers, on_page],
                **quiet,
            }
            # While the slider moves, one picture after the other; when it is let go, the last one at once.
            strength.input(**draw, trigger_mode="always_last")
            for event in (page.load, strength.release, prompt.submit, prompt.blur, seed.submit, seed.blur):
                event(**draw, trigger_mode="multiple")
            another.click(lambda at: (int(at or 0) + 1) % SEEDS, [seed], [seed], **quiet).then(**draw)
            for button, text in zip(examples, prompts, strict=False):
                button.click(lambda text=text: text, None, [prompt], **quiet).then(**draw)
            chosen = adapter.input(self.choose, [adapter, strength], [strength, about], **quiet)
            chosen.then(**draw)
            for button, liked in ((like, True), (dislike, False)):
                button.click(self.rater(liked), [on_page, own_folder], [told, own_folder, download], **quiet)
            page.unload(self.leave)
        return page

    def about(self, name: str) -> str:
        """What the adapter's reward likes."""
        return words.about(name, str(self.studio.config(name).reward.get("description", "")))

    def slider(self, name: str) -> dict[str, Any]:
        """Range and first value of the slider for an adapter."""
        low, high = self.studio.range(name)
        own = self.studio.config(name).strength
        return {"minimum": low, "maximum": high, "value": min(max(own, low), high), "step": 0.05}

    def choose(self, name: str, strength: float) -> tuple[Any, str]:
        """Another adapter: the slider keeps its place as far as that one reaches."""
        slider = self.slider(name)
        slider["value"] = min(max(strength, slider["minimum"]), slider["maximum"])
        return gr.Slider(**slider), self.about(name)

    def redraw(
        self, adapter: str, prompt: str, seed: float | None, strength: float, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        """Pictures and numbers as they come; nothing more once the same visitor wants to see something else."""
        session = request.session_hash
        wish = Wish(adapter, prompt.strip(), int(seed or 0) % SEEDS, round(strength, 3))
        if not wish.prompt:
            yield gr.skip(), gr.skip(), words.ASK, gr.skip()
            return
        self.wanted[session] = wish
        try:
            for view in self.studio.follow(wish, lambda: self.wanted.get(session) == wish):
                yield self.values(view, self.sent.setdefault(session, [None, None]))
        except Exception as error:
            traceback.print_exc()
            yield gr.skip(), gr.skip(), words.fault(error), gr.skip()
        yield gr.skip(), gr.skip(), gr.skip(), gr.skip()

    def values(self, view: View, sent: list[Drawn | None]) -> tuple[Any, ...]:
        """What the pictures, the numbers and the wish on the page become.

        A picture goes out once: gradio writes its file anew each time, and a browser that is reading it gets half.
        """
        before, after = gr.skip(), gr.skip()
        if view.before is not None and view.before is not sent[0]:
            sent[0], before = view.before, enlarged(view.before.picture)
        if view.after is not None and view.after is not sent[1]:
            sent[1] = view.after
            after = gr.Image(enlarged(view.after.picture), label=f"Strength {view.wish.strength:g}")
        return before, after, words.numbers(view), gr.skip() if view.after is None else view.wish

    def about_likes(self) -> str:
        """What is said of likes before there are any."""
        return "" if self.likes is None else f"Likes go to {self.likes}, which training takes. {count(self.likes)}."

    def rater(self, liked: bool) -> Any:
        """What a click on a button does."""

        def rate(wish: Wish | None, own: str | None) -> tuple[Any, ...]:
            if wish is None:
                return "There is no picture yet.", own, gr.skip()
            try:
                if self.likes is None:
                    own = own or tempfile.mkdtemp(prefix="diffusion-nft-likes-")
                folder = self.likes or Path(own or "", "likes")
                judged = keep(folder, self.studio, wish, liked)
                file = gr.skip() if self.likes else gr.DownloadButton(value=str(as_zip(folder)), visible=True)
            except (ValueError, OSError) as error:
                return f"Not kept: {error}", own, gr.skip()
            verdict = "Liked" if liked else "Disliked"
            place = f" in {self.likes}" if self.likes else ""
            return f"{verdict}: seed {wish.seed} at strength {wish.strength:g}. {judged}{place}.", own, file

        return rate

    def leave(self, request: gr.Request) -> None:
        """Somebody has closed the page."""
        self.wanted.pop(request.session_hash, None)
        self.sent.pop(request.session_hash, None)


def enlarged(picture: Image.Image) -> Image.Image:
    """A picture of at least `BIG` pixels across: a smaller one by a whole factor, smoothly."""
    factor = -(-BIG // max(picture.size))
    if factor == 1:
        return picture
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.LANCZOS)


def _remove(own: str | None) -> None:
    """A visitor's own likes, an hour after the visitor has left; None where likes go to a folder of the host."""
    if own is not None:
        shutil.rmtree(own, ignore_errors=True)
