"""The README and the docs: every command parses and is run somewhere, and what they name exists."""

import argparse
import copy
import functools
import importlib
import pathlib
import re
import shlex
import tomllib

import pytest
from absl import flags
from ml_collections import config_flags

from configs import base
from nvg_jax import configs
from nvg_jax import main as command_line

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / folder / "README.md" for folder in ("benchmarks", "launch")),
]
# Which file runs a program or a job for real, where `.ci/run` does not.
RUN_BY_TESTS = {
    "benchmarks.scale_plot": "tests/scale_plot_test.py",
    "nvg_jax.interop.convert": "tests/interop/convert_test.py",
    "benchmarks.reproduce_table": "tests/reproduce_test.py",
    "--config=configs/nvg_photos.py": "tests/photos_test.py",
    "--job=compile": "tests/jobs/compilation_test.py",
    "nvg_jax.demo": "tests/demo/page_test.py",
    "nvg-jax": "tests/package_test.py",
    "launch/local.sh": "tests/distributed_test.py",
    "launch/tpu_pod.sh": "tests/launch_test.py",
    "launch/gpu_slurm.sbatch": "tests/launch_test.py",
    "launch/gke_jobset.yaml": "tests/launch_test.py",
}
OTHERS = {"git", "cd", ".", "pip", "ruff", "pre-commit", "tensorboard", "gcloud", "kubectl"}


def commands(page: pathlib.Path) -> list[list[str]]:
    """The words of every command in the page's bash blocks, with shell variables filled in."""
    found, variables = [], {}
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
        block = re.sub(r"<[^<>]*>", "PLACEHOLDER", block.replace("\\\n", " "))
        for line in block.splitlines():
            for name, value in variables.items():
                line = line.replace(f"${name} ", f"{value} ")
            words = shlex.split(line, comments=True)
            if len(words) == 1 and (assigned := re.fullmatch(r"(\w+)=(.*)", words[0])):
                variables[assigned[1]] = assigned[2]
                continue
            while "&&" in words:
                end = words.index("&&")
                found.append(words[:end])
                words = words[end + 1 :]
            if words:
                found.append(words)
    return found


COMMANDS = [(page, words) for page in PAGES for words in commands(page)]


def program(words: list[str]) -> tuple[str, list[str]]:
    """The module that a command starts, by itself or by a launcher, with its arguments; or ''."""
    if "-m" in words and words[words.index("-m") - 1].startswith("python"):
        start = words.index("-m") + 1
        return words[start], words[start + 1 :]
    if words[0] == "nvg-jax":
        return "nvg_jax.main", words[1:]
    for index, word in enumerate(words):
        if word.endswith(".sbatch") and words[index + 1 :] != ["..."]:
            return "nvg_jax.main", words[index + 1 :]
    return "", []


def parse_flags(module: str, arguments: list[str]) -> None:
    """Reads the arguments with the module's flags and the config file that they name.

    Other programs than `nvg_jax.main` define flags of the same names, so theirs are only looked up.
    """
    values = flags.FlagValues()
    if module == command_line.__name__:
        for flag in flags.FLAGS.flags_by_module_dict()[module]:
            if not flag.name.startswith("config"):
                values[flag.name] = copy.deepcopy(flag)
    else:
        path = ROOT / module.replace(".", "/")
        path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        source = path.read_text()
        for name in set(re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"", source)) - {"config"}:
            flags.DEFINE_string(name, None, "", flag_values=values)
    argv = [module, *arguments]
    for index, word in enumerate(argv):
        if word.startswith("--config="):
            argv[index] = f"--config={configs.find(word.removeprefix('--config='))}"
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=argv)
    assert values(argv)[1:] == [], "not a flag"
    if any(argument.startswith("--config=") for argument in arguments):
        values.config.keys()  # A file that could not be loaded says so on first use.


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=lambda x: getattr(x, "stem", None))
def test_a_command_parses(page, words, monkeypatch):
    module, arguments = program(words)
    if module in ("nvg_jax.data.prepare", "nvg_jax.interop.fetch"):

        def stop(*parsed):
            real(*parsed)
            raise KeyboardInterrupt

        real = argparse.ArgumentParser.parse_args
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(KeyboardInterrupt):
            importlib.import_module(module).main(arguments)
    elif module.startswith(("nvg_jax.", "benchmarks.")):
        parse_flags(module, arguments)
    elif not module:
        assert words[0] in OTHERS or words[0] == "sbatch" or (ROOT / words[0]).exists(), words
    for word in words:
        if re.match(r"(requirements.*\.txt|(launch|tests|configs|notebooks)/\S+)$", word):
            assert (ROOT / word).exists(), word


def test_flags_and_keys_that_do_not_exist_are_found():
    config = "--config=configs/nvg_digits.py"
    for wrong in ("--job=paint", "--config.generator.modle.depth=3", "--workdri=x"):
        with pytest.raises((flags.Error, KeyError)):
            parse_flags("nvg_jax.main", [config, wrong])


def test_every_program_and_job_that_is_shown_is_run():
    shown = {f"--job={job}" for job in command_line.JOBS if job != "train"}
    for _, words in COMMANDS:
        module, _ = program(words)
        shown |= {words[0]} & {"nvg-jax"}
        shown |= {module} - {"", "venv"}
        shown |= {word for word in words if word.startswith(("launch/", "--config=configs/"))}
    script = (ROOT / ".ci" / "run").read_text()
    in_a_loop = re.search(r"for job in (.*?);", script)[1].split()
    run = {*re.split(r"[\s()]+", script), *(f"--job={job}" for job in in_a_loop)}
    # The ImageNet configs differ in numbers only, and their programs are what `compile` compiles.
    paper = {name for name in shown if re.search(r"configs/nvg_d\d", name)}
    missing = shown - run - set(RUN_BY_TESTS) - paper
    assert not missing, f"run these in .ci/run or in a test: {missing}"
    for name, file in RUN_BY_TESTS.items():
        last = re.split(r"[=./]", name)
        assert any(part in (ROOT / file).read_text() for part in last if len(part) > 3), (
            name,
            file,
        )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_values_of_the_config_that_a_page_names_exist(page):
    config = base.get_config(depth=16, epochs=1, decay_start=0.8, decay_to=0.1)
    for name in re.findall(r"`(?:--)?config\.(\w+(?:\.\w+)*)", page.read_text()):
        if name != "json":
            functools.reduce(getattr, name.split("."), config)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_files_that_a_page_names_exist(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]*)(?:#[^)]*)?\)", text):
        if target and not target.startswith("http"):
            assert (page.parent / target).exists(), target
    for target, anchor in re.findall(r"\]\(([^)#]*)#([^)]*)\)", text):
        linked = (page.parent / target if target else page).read_text()
        headings = re.findall(r"^#+ (.*)$", linked, re.MULTILINE)
        assert anchor in [re.sub(r"[^\w -]", "", x).lower().replace(" ", "-") for x in headings]


def test_the_readme_is_one_page_and_every_other_page_is_linked():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 150
    for page in PAGES[1:]:
        folder = "launch/" if page.parent.name == "launch" else str(page.relative_to(ROOT))
        assert f"]({folder}" in readme, page


def test_what_supports_a_python_says_so():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = [x.rsplit(" ", 1)[1] for x in project["classifiers"] if re.search(r"3\.\d", x)]
    assert project["requires-python"] == f">={versions[0]}"
    script = (ROOT / ".ci" / "run").read_text()
    assert all(re.search(rf"find_python .*\b{re.escape(x)}\b", script) for x in versions)
