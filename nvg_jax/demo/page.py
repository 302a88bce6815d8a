"""The page: what stands where, and which function of the studio a click calls."""

from __future__ import annotations

import functools
import inspect
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
import numpy as np
from etils import epath
from PIL import Image

from nvg_jax import visualize
from nvg_jax.demo import bounds, drawing
from nvg_jax.demo.studio import FILES, Made, Studio, Wishes
from nvg_jax.errors import UserError

KEPT_SECONDS = 3600  # What was made can be downloaded for so long.
MAX_WAITING = 100
MODEL = {"concurrency_id": "model", "concurrency_limit": 1}  # One request at a time has it.
_NAMES = {
    "fashion_mnist": ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt",
                      "sneaker", "bag", "ankle boot")
}  # fmt: skip
_INTRODUCTION = """# Next Visual Granularity
An image is made in stages, from one colour to full detail. Every stage has a *structure*, which
positions share a token, and a *content*, which tokens: both are drawn here, or given by you."""
_HINTS = {
    "Generate": "Left the images so far, right which of their positions share a token.",
    "Paint structure": "Paint where the parts of the image are, black and yellow, or in four "
    "levels of the brush's colours. Every stage halves every cluster, so the map is balanced: see "
    "what becomes of it, and sample under it.",
    "Take apart": "Upload an image, or take one of the model's. Keep its first stages, and have "
    "the rest drawn anew under any class.",
    "Edit": "Upload an image, or take one of the model's. Brush over what should change.",
}


class Page:
    """The page of a studio. folder: where Gradio keeps uploads and what is made, and nothing else
    is read or written."""

    def __init__(self, studio: Studio, folder: epath.Path):
        self.studio, self.folder, self.side = studio, folder, drawing.side(studio.size)
        with gr.Blocks(
            title="NVG", analytics_enabled=False, delete_cache=(60, KEPT_SECONDS)
        ) as self.blocks:
            gr.Markdown(_INTRODUCTION)
            with gr.Row():
                with gr.Column(scale=1, min_width=240):
                    self.wishes = self._wishes()
                with gr.Column(scale=4), gr.Tabs():
                    for name, fill in (
                        ("Generate", self._generate),
                        ("Paint structure", self._paint),
                        ("Take apart", self._take_apart),
                        ("Edit", self._edit),
                    ):
                        with gr.Tab(name):
                            gr.Markdown(_HINTS[name])
                            fill()
        self.blocks.queue(max_size=MAX_WAITING, default_concurrency_limit=1)

    def _wishes(self) -> list[gr.components.Component]:
        config = self.studio.config
        names = _NAMES.get(config.data.dataset, ())
        choices = [
            (" ".join([str(index), *names[index : index + 1]]), str(index))
            for index in range(config.data.num_classes)
        ]
        choices = [bounds.IN_TURN, bounds.NO_CLASS, *choices]
        steps = bounds.nearest_steps(config.sampling.flow_steps)
        most = self.studio.most
        return [
            gr.Dropdown(choices, value=bounds.IN_TURN, label="Class"),
            gr.Number(value=0, precision=0, minimum=0, maximum=bounds.MAX_SEED, label="Seed"),
            gr.Slider(1, most, value=min(4, most), step=1, label="Images"),
            gr.Slider(0, bounds.MAX_STRENGTH, value=1, step=0.1, label="Guidance",
                      info="Of the class; 0 is none"),
            gr.Slider(0, bounds.MAX_TEMPERATURE, value=config.sampling.temperature, step=0.05,
                      label="Temperature", info="Of the tokens"),
            gr.Dropdown(bounds.STEPS, value=steps, label="Steps", info="Of the structure"),
        ]  # fmt: skip

    def _outcome(self) -> list[gr.components.Component]:
        """Where samples are shown, in the order in which `_shown` gives them."""
        words = gr.Markdown()
        with gr.Row():
            canvases, maps = _picture(), _picture()
        strip = _picture()
        with gr.Row():
            files = [gr.DownloadButton(name, size="sm", interactive=False) for name in FILES]
        return [words, canvases, maps, strip, *files]

    def _shown(self, every: Iterator[Made]) -> Iterator[list[Any]]:
        for made in every:
            files = [gr.DownloadButton(interactive=False) for _ in FILES]
            if made.is_last:
                saved = made.save(self.folder / uuid.uuid4().hex)
                files = [gr.DownloadButton(value=path, interactive=True) for path in saved]
            yield [made.words, made.picture(), made.maps(), made.strip(), *files]

    def _generate(self) -> None:
        button = gr.Button("Generate", variant="primary")

        def run(*wishes: Any) -> Iterator[list[Any]]:
            yield from self._shown(self.studio.samples(Wishes(*wishes)))

        button.click(_in_words(run), self.wishes, self._outcome(), api_name="generate", **MODEL)

    def _paint(self) -> None:
        with gr.Row():
            with gr.Column():
                with gr.Row():
                    levels = gr.Radio([2, 4], value=2, label="Levels")
                    example = gr.Dropdown(list(drawing.EXAMPLES), value=None, label="Examples")
                colours = [f"#{bytes(colour).hex()}" for colour in reversed(drawing.PALETTE)]
                blank = np.tile(drawing.PALETTE[0], (self.side, self.side, 1))
                editor = self._editor("Map", colours, _canvas(blank))
                button = gr.Button("Sample under it", variant="primary")
            with gr.Column():
                guide = _picture()
                words = gr.Markdown()

        def became(picture: drawing.Picture | None, count: int) -> list[Any]:
            try:
                found = self.studio.guide(picture, count)
            except UserError as error:  # Of a drawing that has only been begun.
                return [None, str(error)]
            return [found.pictures, found.words]

        def preview(drawn: dict[str, Any] | None, count: int) -> list[Any]:
            return became(_drawing(drawn), count)

        def chosen(name: str) -> list[Any]:
            picture = drawing.example(name, self.side)
            count = 4 if len(drawing.EXAMPLES[name]) > 1 else 2
            return [_canvas(picture), count, *became(picture, count)]

        def run(drawn: dict[str, Any] | None, count: int, *wishes: Any) -> Iterator[list[Any]]:
            found = self.studio.guide(_drawing(drawn), count)
            of_guide = [found.pictures, found.words]
            yield of_guide + [gr.skip()] * (4 + len(FILES))
            every = self.studio.samples(Wishes(*wishes), given=found.given)
            for shown in self._shown(every):
                yield of_guide + shown

        example.input(chosen, [example], [editor, levels, guide, words], api_visibility="private")
        gr.on(
            [editor.input, levels.change],
            preview,
            [editor, levels],
            [guide, words],
            show_progress="hidden",
            trigger_mode="always_last",
            concurrency_id="drawing",
            api_visibility="private",
        )
        inputs = [editor, levels, *self.wishes]
        outputs = [guide, words, *self._outcome()]
        button.click(_in_words(run), inputs, outputs, api_name="paint", **MODEL)

    def _take_apart(self) -> None:
        file, _ = self._image_file()
        stages = self.studio.num_stages
        parts = _picture()
        with gr.Row():
            of_structure = gr.Slider(0, stages, min(3, stages), step=1, label="Structure kept",
                                     info="Stages, from the first on")  # fmt: skip
            of_content = gr.Slider(0, stages, 0, step=1, label="Content kept",
                                   info="Stages, as many as their structure at most")  # fmt: skip
        button = gr.Button("Draw the rest anew", variant="primary")

        def apart(path: str | None) -> Any:
            return None if path is None else self.studio.taken_apart(self.studio.square(path))

        def run(path: str | None, structure: Any, content: Any, *wishes: Any) -> Iterator[Any]:
            image = self.studio.square(path)
            given = self.studio.kept_stages(image, structure, content)
            yield from self._shown(self.studio.samples(Wishes(*wishes), given=given))

        file.change(_in_words(apart), [file], [parts], api_name="take_apart", **MODEL)
        inputs = [file, of_structure, of_content, *self.wishes]
        button.click(_in_words(run), inputs, self._outcome(), api_name="draw_anew", **MODEL)

    def _edit(self) -> None:
        file, _ = self._image_file()
        editor = self._editor("Brush over what should change", [("#e6463c", 0.7)])
        button = gr.Button("Make variants", variant="primary")

        def canvas(path: str | None) -> Any:
            if path is None:
                return None
            image = Image.fromarray(self.studio.square(path))
            return _canvas(np.asarray(image.resize((self.side,) * 2, Image.Resampling.NEAREST)))

        def run(path: str | None, drawn: dict[str, Any] | None, *wishes: Any) -> Iterator[Any]:
            image = self.studio.square(path)
            every = self.studio.variants(image, drawn and drawn["layers"], Wishes(*wishes))
            yield from self._shown(every)

        file.change(_in_words(canvas), [file], [editor], api_visibility="private")
        inputs = [file, editor, *self.wishes]
        button.click(_in_words(run), inputs, self._outcome(), api_name="edit", **MODEL)

    def _editor(self, label: str, colours: list[Any], value: Any = None) -> gr.ImageEditor:
        return gr.ImageEditor(
            value,
            label=label,
            sources=(),
            transforms=(),
            layers=False,
            brush=gr.Brush(
                default_size=self.side // 8,
                colors=colours,
                default_color=colours[0],
                color_mode="fixed",
            ),
            canvas_size=(self.side, self.side),
            fixed_canvas=True,
            interactive=True,
        )

    def _image_file(self) -> tuple[gr.File, gr.Button]:
        """Where an image is uploaded, or one of the model's asked for."""
        with gr.Row():
            file = gr.File(label="Image", height=120, scale=3)
            button = gr.Button("One of the model's", scale=1)

        def run(*wishes: Any) -> str:
            every = self.studio.samples(Wishes(*wishes)._replace(count=1))
            *_, last = every
            path = self.folder / uuid.uuid4().hex / "image.png"
            visualize.save_png(path, last.images[0])
            return str(path)

        button.click(_in_words(run), self.wishes, [file], api_visibility="private", **MODEL)
        return file, button


def _picture() -> gr.Image:
    return gr.Image(format="png", interactive=False, show_label=False, buttons=[])


def _canvas(picture: drawing.Picture) -> dict[str, Any]:
    return {"background": picture, "layers": [], "composite": None}


def _drawing(sent: dict[str, Any] | None) -> drawing.Picture | None:
    """What an editor shows: it sends no composite as long as nobody has drawn on its picture."""
    if sent is None or sent["composite"] is not None:
        return sent and sent["composite"]
    return sent["background"]


def _in_words(run: Callable[..., Any]) -> Callable[..., Any]:
    """Shows a visitor's mistake as one sentence on the page."""

    def shown(error: UserError) -> gr.Error:
        return gr.Error(str(error), print_exception=False, duration=20)

    if not inspect.isgeneratorfunction(run):

        @functools.wraps(run)
        def answer(*args: Any) -> Any:
            try:
                return run(*args)
            except UserError as error:
                raise shown(error) from None

        return answer

    @functools.wraps(run)
    def answers(*args: Any) -> Iterator[Any]:
        try:
            yield from run(*args)
        except UserError as error:
            raise shown(error) from None

    return answers
