"""The page in a browser, as visitors click and draw, and the server behind it, as they harm it."""

import importlib.util
import os
import pathlib
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib

import numpy as np
import pytest
from PIL import Image

SECONDS = 200  # For one answer, on a busy machine.
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CHROMIUM = CHROMIUM or shutil.which("google-chrome")
needs_gradio = pytest.mark.skipif(
    not importlib.util.find_spec("gradio"), reason="Gradio, of requirements-demo.txt, is missing"
)
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and importlib.util.find_spec("playwright")),
    reason="there is no Chromium, or no Playwright to drive it",
)


class Server:
    """`python -m nvg_jax.demo` as a process of its own."""

    def __init__(self, log: pathlib.Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}/"
        command = [sys.executable, "-m", "nvg_jax.demo", f"--port={port}"]
        command += ["--config=nvg_digits", "--config.pretrained=digits"]
        self._log, self.folder = log, log.parent
        environment = os.environ | {
            "PYTHONPATH": str(pathlib.Path(__file__).parents[2]),
            "TMPDIR": str(self.folder),
            "GRADIO_SHARE": "True",
        }
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=file, env=environment, cwd=self.folder
            )
        deadline = time.monotonic() + SECONDS
        while "ready after" not in self.said():
            assert self.process.poll() is None and time.monotonic() < deadline, self.said()
            time.sleep(0.2)

    def said(self) -> str:
        return self._log.read_text()

    def megabytes(self) -> float:
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server") / "log.txt")
    try:
        yield server
    finally:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(SECONDS) == 128 + signal.SIGTERM
    # Its own folder is gone, and nothing was left elsewhere.
    assert [path.name for path in server.folder.iterdir()] == ["log.txt"]


@pytest.fixture(scope="module")
def client(server):
    from gradio_client import Client

    return Client(server.address, verbose=False, download_files=False)


WISHES = ["3", 0, 1, 1, 0.8, 4]


def _png(path, width, height):
    """A black image, of which nothing is large but its header."""

    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    packer = zlib.compressobj(9)
    rows = bytes((1 + (width + 7) // 8) * 100)
    data = b"".join(packer.compress(rows) for _ in range(height // 100)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


@pytest.mark.slow
@needs_gradio
def test_images_grow_stage_by_stage_and_can_be_downloaded(client, server):
    job = client.submit(*WISHES, api_name="/generate")
    words, picture, maps, strip, *files = job.result(SECONDS)
    found = [output[0] for output in job.outputs()]
    assert found[0] == "Stage 0 of 4: 1 token" and words == "1 made in 5 stages."
    assert len(found) == 5
    names = [pathlib.Path(file["value"]["path"]).name for file in files]
    assert names == ["samples.npz", "samples.png", "sequences.npz", "stages.png"]
    files = [file["value"] for file in files]
    for file in [picture, maps, strip, *files]:
        with urllib.request.urlopen(file["url"]) as answer:
            assert len(answer.read()) > 100


@pytest.mark.slow
@needs_gradio
def test_files_that_are_uploaded(client, server, tmp_path):
    import httpx
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

    def upload(name):
        return client.predict(handle_file(str(tmp_path / name)), api_name="/take_apart")

    random = np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 256, (40, 60, 3), np.uint8))
    rotated = Image.Exif()
    rotated[0x0112] = 6
    picture.save(tmp_path / "rotated.jpg", exif=rotated)
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg")
    picture.putalpha(100)
    picture.save(tmp_path / "alpha.png")
    frames = [Image.new("RGB", (30, 30), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    for name in ("rotated.jpg", "cmyk.jpg", "alpha.png", "moving.gif"):
        assert upload(name)["path"].endswith(".png")
    (tmp_path / "text.png").write_text("no picture")
    _png(tmp_path / "large.png", 20_000, 20_000)
    (tmp_path / "heavy.png").write_bytes(bytes(11 * 2**20))
    for name, message in (
        ("text.png", r"^cannot read text\.png: it is no image, or damaged$"),
        ("large.png", r"^large\.png is too large: make it 25 million pixels or fewer$"),
        ("heavy.png", "maximum|too large|size"),  # Gradio says so, while it is being sent.
    ):
        with pytest.raises((AppError, httpx.HTTPError, ValueError), match=message):
            upload(name)
    assert "Traceback" not in server.said(), server.said()


@pytest.mark.slow
@needs_gradio
def test_no_other_file_can_be_read(server, tmp_path):
    import httpx

    secret = tmp_path / "secret.png"
    Image.new("RGB", (20, 20)).save(secret)
    call, meta = f"{server.address}gradio_api/call/take_apart", {"_type": "gradio.FileData"}
    for path in map(str, (secret, "/etc/passwd", __file__, server.folder / "log.txt")):
        assert httpx.get(f"{server.address}gradio_api/file={path}").status_code == 403
        for file in ({"path": path}, {"path": "x.png", "url": f"file://{path}"}):
            event = httpx.post(call, json={"data": [file | {"meta": meta}]}).json()["event_id"]
            answer = httpx.get(f"{call}/{event}", timeout=SECONDS).text
            assert answer.startswith("event: error") and "complete" not in answer


@pytest.mark.slow
@needs_gradio
def test_fifty_requests_at_once_are_answered_and_their_memory_comes_back(client, server):
    def fifty():
        jobs = [client.submit(*WISHES, api_name="/generate") for _ in range(50)]
        return [job.result(SECONDS) for job in jobs]

    for _ in range(3):
        client.predict(*WISHES, api_name="/generate")
    before = server.megabytes()
    assert [found[0] for found in fifty()] == ["1 made in 5 stages."] * 50
    after = server.megabytes()
    print(f"{before:.0f} MB before, {after:.0f} MB after 50 requests")
    assert after < before + 100


@pytest.mark.slow
@needs_gradio
@needs_browser
def test_each_tab_by_clicking_and_drawing(server, tmp_path):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1360, "height": 1200})
        page.set_default_timeout(SECONDS * 1000)
        requested = []
        page.on("request", lambda request: requested.append(request.url))
        page.goto(server.address)

        def visible(name, role="button"):
            return page.get_by_role(role, name=name, exact=True).locator("visible=true")

        def wait_for(text):
            page.get_by_text(re.compile(text)).locator("visible=true").first.wait_for()

        def stroke(dx, dy):
            visible("Brush").wait_for()
            page.wait_for_timeout(1500)  # Until the canvas stands still.
            box = page.locator("canvas").locator("visible=true").first.bounding_box()
            x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
            page.mouse.move(x - dx, y - dy)
            page.mouse.down()
            page.mouse.move(x + dx, y + dy, steps=20)
            page.mouse.up()

        visible("Generate").click()
        wait_for("^4 made in 5 stages")
        visible("Paint structure", "tab").click()
        visible("Sample under it").click()
        wait_for("one level only")
        stroke(60, 60)
        wait_for("balanced to 2 parts of 50% each.* changed its level")
        visible("Sample under it").click()
        wait_for("^4 made in 5 stages")
        visible("Take apart", "tab").click()
        text = tmp_path / "text.png"
        text.write_text("no picture")
        visible("Draw the rest anew").click()
        wait_for("choose an image first")
        with page.expect_file_chooser() as chooser:
            page.get_by_text("Click to Upload").locator("visible=true").first.click()
        chooser.value.set_files(text)
        wait_for("cannot read text.png: it is no image, or damaged")
        visible("One of the model's").click()
        page.locator("img").locator("visible=true").first.wait_for()
        visible("Draw the rest anew").click()
        wait_for("^4 made in 5 stages")
        visible("Edit", "tab").click()
        visible("Brush").wait_for()
        with page.expect_response(lambda answer: "/file=" in answer.url):  # What is drawn on.
            visible("One of the model's").click()
        stroke(60, 0)
        visible("Make variants").click()
        wait_for("^4 made in 5 stages")
        assert not [
            url for url in requested if not url.startswith((server.address, "blob:", "data:"))
        ]
        browser.close()


def test_without_gradio_it_says_what_to_install(tmp_path):
    (tmp_path / "gradio.py").write_text("raise ImportError(name='gradio')")
    paths = os.pathsep.join([str(tmp_path), str(pathlib.Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-m", "nvg_jax.demo"],
        env=os.environ | {"PYTHONPATH": paths, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    wanted = "the page needs the package gradio: pip install -r requirements-demo.txt"
    assert done.stderr == f"error: {wanted}\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config=nvg_digits"], "error: whose weights? name them with --config.pretrained"),
        (["--config.pretrained=x"], "error: config.pretrained='x' is not among the weights here"),
        (["--port=70000"], "error: flag --port=70000"),
    ],
)
@needs_gradio
def test_wrong_flags_are_one_line(flags, message):
    command = [sys.executable, "-m", "nvg_jax.demo", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith(message), done.stderr
    assert len(done.stderr.splitlines()) == 1
