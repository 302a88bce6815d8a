"""Files on the Hugging Face hub; weights there are named `hf://owner/repository/path.safetensors`,
with `@revision` at the end if it is not the main branch."""

import functools
import logging
import os
import re

from nvg_jax.errors import UserError

log = logging.getLogger(__name__)

PREFIX = "hf://"
# Nothing but .safetensors: other formats of weights there are pickles, which can run code.
_NAME = re.compile(PREFIX + r"([^/@]+/[^/@]+)/([^@]+\.safetensors)(?:@([^@]+))?")


@functools.cache
def local_file(name: str) -> str:
    """The path of weights on the hub, as `download` gives it; a process sees one revision of each.

    Raises UserError if it is no such name, or as `download`.
    """
    parts = _NAME.fullmatch(name)
    if not parts:
        raise _no_name(name)
    return download(name, *parts.groups())


def download(name: str, repository: str, path: str, revision: str | None = None) -> str:
    """The path of a file on the hub in the cache of the hub's client, once it is there.

    As that client does: the revision is a branch, a tag or a commit, by default the main branch; a
    newer file there is downloaded; where the hub cannot be reached or `HF_HUB_OFFLINE` is set, what
    is in the cache is taken.

    Raises UserError, which begins with `name`, if the client is not installed or gives no file.
    """
    try:
        import httpx2
        import huggingface_hub
        from huggingface_hub import constants, errors
    except ImportError as error:
        raise UserError(
            f"{name} needs the package {error.name}: pip install {error.name}"
        ) from error
    if "HF_HUB_VERBOSITY" not in os.environ:
        huggingface_hub.logging.set_verbosity_error()  # What is wrong is said here, in one line.
    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    refused = f"{name}: {constants.ENDPOINT} refuses your token"
    refused += f": make one that may read gated repositories, and {log_in}"
    try:
        file = huggingface_hub.hf_hub_download(repository, path, revision=revision)
    except errors.GatedRepoError as error:
        page = f"{constants.ENDPOINT}/{repository}"
        raise UserError(f"{name} is gated: agree to the terms at {page}, then {log_in}") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{name}: there is no repository {repository} for you: correct the name or, if it is "
            f"private, {log_in}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"{name}: {repository} has no revision {revision}: name a branch, a tag or a commit"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        if _status(error.__cause__) == 403:
            raise UserError(refused) from error
        if constants.is_offline_mode():
            why = "HF_HUB_OFFLINE is set: unset it"
        else:
            why = (
                f"{constants.ENDPOINT} gives none ({_line(error.__cause__)}): check the connection"
            )
        raise UserError(f"{name} is not in {constants.HF_HUB_CACHE}, and {why}") from error
    except errors.EntryNotFoundError as error:
        raise UserError(f"{name}: {repository} has no file {path}: correct the name") from error
    except ValueError as error:
        raise _no_name(name) from error
    except (OSError, httpx2.HTTPError) as error:
        if _status(error) in (401, 403):
            raise UserError(refused) from error
        raise UserError(
            f"{name} cannot be downloaded ({_line(error)}): try again, with room in "
            f"{constants.HF_HUB_CACHE}"
        ) from error
    log.info("%s is %s", name, file)
    return file


def is_name(path: str | os.PathLike) -> bool:
    """Whether a path is on the hub."""
    return str(path).startswith(PREFIX)


def _no_name(name: str) -> UserError:
    form = f"{PREFIX}owner/repository/path.safetensors"
    return UserError(f"{name} is not of the form {form} or {form}@revision: name such a file")


def _status(error: BaseException | None) -> int | None:
    """The status that an answer had, where an error is of one."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _line(error: BaseException | None) -> str:
    return " ".join(str(error).split()).rstrip(".")
