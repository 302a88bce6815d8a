"""Opens the page: `python -m nvg_jax.demo`, or `nvg-jax-demo` where the package is installed.

Without flags it shows the weights for Fashion-MNIST that come with the package. `--config`,
`--workdir` and `--config.…` name others as for `nvg_jax.main`.
"""

from __future__ import annotations

from nvg_jax import stopping

if __name__ == "__main__":
    stopping.watch()  # Before the imports, which take a while.

import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags
from PIL import Image

import nvg_jax
from nvg_jax import cli, configs, files
from nvg_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
    "config", configs.find("nvg_fashion"), "The config: its path or name."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of a training, for its weights.")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Where to listen; 0.0.0.0 is everywhere.")
_PORT = flags.DEFINE_integer("port", None, "Default: the first free from 7860 on.", 1, 65535)
_IMAGES = flags.DEFINE_integer("images", 8, "Most images at once; so many are computed.", 1, 64)

if TYPE_CHECKING:  # They need Gradio.
    from gradio import Blocks

    from nvg_jax.demo.page import Page

log = logging.getLogger("nvg_jax.demo")


def main() -> None:
    config = _weights_named(_CONFIG.value)
    with files.temporary_folder("nvg_jax_demo_") as folder:
        workdir = files.readable_workdir(_WORKDIR.value) if _WORKDIR.value else ""
        page = open_page(config, workdir, folder, _IMAGES.value)
        _, address, _ = launch(page.blocks, _HOST.value, _PORT.value)
        seconds = time.monotonic() - nvg_jax.START_TIME
        log.info("ready after %.0f s: %s (Ctrl-C ends it)", seconds, address)
        page.studio.warm_up()
        threading.Event().wait()


def _weights_named(config: ConfigDict) -> ConfigDict:
    named = config.pretrained or config.generator.checkpoint or _WORKDIR.value
    if named:
        return config
    if flags.FLAGS["config"].present:
        raise UserError(
            "whose weights? name them with --config.pretrained, --workdir, or "
            "--config.tokenizer.checkpoint and --config.generator.checkpoint"
        )
    config.pretrained = "fashion"
    return config


def open_page(config: ConfigDict, workdir: str, folder: epath.PathLike, most: int) -> Page:
    """The page of the weights that the config names or the workdir has.

    folder: where Gradio keeps uploads and what is made.

    UserError: Gradio is not installed, the config is wrong, or there are no weights.
    """
    # Gradio reads them when it is imported.
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"the page needs the package {error.name}: pip install -r requirements-demo.txt"
        ) from error
    from nvg_jax import startup
    from nvg_jax.demo.bounds import MAX_PIXELS
    from nvg_jax.demo.page import Page
    from nvg_jax.demo.studio import Studio
    from nvg_jax.frozen.weights import weights_directory
    from nvg_jax.jobs.job import check

    check(config, "control")  # Which is of the paper's method alone, as the page is.
    startup.start(workdir or weights_directory())
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow refuses twice as many, by the header.
    return Page(Studio(config, workdir, most), epath.Path(folder))


def launch(page: Blocks, host: str, port: int | None) -> tuple[Any, str, Any]:
    """Serves the page in threads of this process; the second value is its address.

    UserError: it cannot listen there.
    """
    import gradio as gr

    from nvg_jax.demo.bounds import MAX_BYTES

    font = ["system-ui", "sans-serif"]  # Others would be downloaded.
    try:
        return page.launch(
            server_name=host,
            server_port=port,
            share=False,
            prevent_thread_lock=True,
            max_file_size=MAX_BYTES,
            show_error=False,
            quiet=True,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            theme=gr.themes.Default(font=font, font_mono=["monospace"]),
        )
    except OSError as error:
        raise UserError(f"cannot listen on {host}, port {port}: {error}") from error


def run() -> None:
    cli.run(main)


if __name__ == "__main__":
    run()
