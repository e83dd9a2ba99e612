"""A model folder to the Hugging Face Hub."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from mlm.checkpoint import ModelFolder
from mlm.errors import UserError
from mlm.exporting.model_card import model_card


def push_to_hub(
    directory: Path,
    folder: ModelFolder,
    repository: str,
    licence: str | None = None,
    private: bool = False,
) -> str:
    """Upload ``directory`` with a card of the run that the model came from.

    Args:
        directory: what is uploaded: the model folder, or what was made of it.
        folder: the model folder.
        repository: OWNER/NAME, made where it is not there.
        licence: the Hub's word for it, such as `mit`.
        private: whether a new repository is private.

    Returns:
        The address of the model's page.

    Raises:
        UserError: not logged in, not allowed, no network, or a link out of the folder.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    _refuse_links_out(directory)
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place, "model")
        shutil.copytree(directory, copy)
        card = model_card(folder, licence, repository.rpartition("/")[2], directory)
        (copy / "README.md").write_text(card, encoding="utf-8")
        try:
            api = HfApi()
            api.create_repo(repository, exist_ok=True, private=private)
            api.upload_folder(
                repo_id=repository, folder_path=copy, commit_message="Upload with mlm"
            )
        except HFValidationError:
            raise UserError(f"--push_to_hub {repository}: is not of the form OWNER/NAME") from None
        except LocalTokenNotFoundError:
            raise UserError("--push_to_hub: no account; log in with `hf auth login`") from None
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else "no answer"
            raise UserError(
                f"--push_to_hub {repository}: the Hub refused ({status}); is the name right, and "
                "may your token write there?"
            ) from None
        except ValueError as error:  # of the card, over several lines
            why = " ".join(str(error).split())
            raise UserError(f"--push_to_hub {repository}: the Hub refuses it: {why}") from None
        except Exception as error:  # what a connection raises is of httpx, and of many kinds
            why = str(error).partition("\n")[0]
            raise UserError(f"--push_to_hub: the Hub cannot be reached ({why})") from None
    return f"https://huggingface.co/{repository}"


def _refuse_links_out(directory: Path) -> None:
    """A folder of somebody else's could publish any file of this machine by a link to it."""
    inside = [directory.resolve()]
    if directory.parent.name == "snapshots":  # the Hub's own cache links to its blobs
        inside.append(directory.resolve().parents[1] / "blobs")
    for path in directory.rglob("*"):
        if path.is_symlink() and not any(path.resolve().is_relative_to(place) for place in inside):
            raise UserError(
                f"{path}: links to a file outside of the folder; put a copy in its place to upload "
                "it"
            )
