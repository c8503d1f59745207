"""What the Hub's refusals mean to a user, in one line each."""

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .errors import first_line

LATER = (408, 429, 500, 502, 503, 504)


def explain(error: BaseException, name: str, revision: str | None = None) -> str:
    """Why the Hub gave or took nothing, and what helps.

    Args:
        error: what huggingface_hub raised.
        name: the repository.
        revision: branch, tag or commit that was asked for.
    """
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, GatedRepoError):
        return f"{name!r} is gated: ask for access on its page, and log in with `hf auth login`."
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"there is no repository {name!r}, or your token may not read it: check the name, and log in with "
            "`hf auth login` where it is private."
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{name!r} has no revision {revision or 'main'!r}: give a branch, a tag or a whole commit hash."
    if status in (401, 403):
        return f"your token may not do this with {name!r} ({status}): log in with `hf auth login` and a write token."
    if status in LATER:
        return f"the Hub is busy or down ({status}): run the same command again later."
    if isinstance(error, HfHubHTTPError) and (said := (error.server_message or "").strip()):
        return f"{said.splitlines()[0]} ({status})"
    return first_line(error)
