"""A checkpoint onto the Hub: weights, processors and card in one commit, or nothing."""

import json
import shlex
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id
from lerobot.common.train_utils import push_checkpoint_to_hub

from lerobot_smoothvla.export import export
from lerobot_smoothvla.hub.card import model_card, picture_path
from lerobot_smoothvla.hub.facts import card_facts, find_checkpoint, read_policy
from lerobot_smoothvla.peft_loading import ADAPTER_CONFIG

# `RuntimeError` is what `hf_xet`, which uploads large files, raises.
_FAILURES = (OSError, httpx.HTTPError, RuntimeError)
_HINTS = {
    401: "Log in with `hf auth login`, or set HF_TOKEN, with a token that may write.",
    403: "That token may not write there: take one that may, and a name of yours or of your organisation.",
    404: "Log in as somebody who may see it.",
    409: "Something else is written there at this moment.",
    412: "Something else was written there at this moment.",
    429: "The Hub asks for patience.",
}


@dataclass
class PushConfig:
    """What is pushed where.

    Attributes:
        repo_id: `user/name` on the Hub; made if it is not there.
        runs: A run of `smoothvla grpo` or one of its checkpoints, and evaluations of that checkpoint.
        private: Whether the repository is made private; None for the Hub's default.
        revision: Branch to push to, made if it is not there; None for main.
        merge: Push an adapter merged into its base, and a `smoothvla` on a SmolVLM as a plain `smolvla`.
        base_repo_id: Where the adapter's base is on the Hub, if it was trained on a local directory.
    """

    repo_id: str
    runs: list[Path] = field(default_factory=list)
    private: bool | None = None
    revision: str | None = None
    merge: bool = False
    base_repo_id: str | None = None

    def __post_init__(self) -> None:
        """Reject what no Hub would take.

        Raises:
            ValueError: If there is nothing to push, a name is not `user/name`, or a flag excludes another.
        """
        if not self.runs:
            raise ValueError("There is nothing to push: `smoothvla push RUN --repo_id=USER/NAME`.")
        for name in (self.repo_id, *([self.base_repo_id] if self.base_repo_id else [])):
            require_repo_id(name)
        if self.merge and self.base_repo_id:
            raise ValueError("A merged policy needs no base; leave --base_repo_id or --merge out.")

    @property
    def command(self) -> str:
        """That does this push."""
        flags = {
            "private": self.private,
            "revision": self.revision,
            "merge": self.merge or None,
            "base_repo_id": self.base_repo_id,
        }
        given = [
            f"--{name}={str(value).lower() if isinstance(value, bool) else value}"
            for name, value in flags.items()
            if value is not None
        ]
        return shlex.join(["smoothvla", "push", *map(str, self.runs), f"--repo_id={self.repo_id}", *given])


def require_repo_id(name: str) -> None:
    """Reject a name that no repository of the Hub can have.

    Raises:
        ValueError: If it is not `user/name`.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"'{name}' can be no repository's name on the Hub: {error}") from error
    if "/" not in name:
        raise ValueError(f"A repository on the Hub should be named `USER/NAME`, got '{name}'.")


def require_access(repo_id: str, private: bool | None) -> None:
    """Make sure that the Hub knows us, before hours are spent on what shall be pushed to it.

    Raises:
        OSError: If it does not, or is out of reach.
        ValueError: If the repository should be private and is public.
    """
    api = HfApi()
    try:
        api.whoami()
        if private:
            _require_private(api, repo_id)
    except _FAILURES as error:
        raise OSError(
            f"The Hub would not take the policy that shall be pushed to {repo_id}: {_reason(error)} Without "
            "the Hub, pass --policy.push_to_hub=false, and push the run later with `smoothvla push`."
        ) from error


def require_base_on_hub(base: str, repo_id: str) -> None:
    """Reject an adapter that would load on this machine alone.

    Raises:
        ValueError: If its base is a directory.
    """
    if Path(base).is_dir():
        raise ValueError(
            f"An adapter on the directory '{base}' would load from {repo_id} on this machine alone: take its "
            "base from the Hub, or leave --policy.repo_id out. Once the run is done, `smoothvla push RUN` "
            "pushes both as one policy (--merge=true), or the adapter alone if its base is there by then "
            "(--base_repo_id=USER/NAME)."
        )


def push(config: PushConfig) -> str:
    """Push a checkpoint with its card.

    Args:
        config: What and where.

    Returns:
        Its address.

    Raises:
        FileNotFoundError: If run, checkpoint or an evaluation is not there.
        OSError: If the Hub refuses or is out of reach. The checkpoint is where it was, and the message has
            the command that pushes it.
        ValueError: If it would not load from the Hub, an evaluation is of another checkpoint, or the
            repository is public and should be private.
    """
    # Here, as matplotlib takes a second, and every run of GRPO imports this module.
    from lerobot_smoothvla.hub.figures import pictures

    source, *evaluations = config.runs
    _, checkpoint = find_checkpoint(source)
    base = _adapter_base(checkpoint)
    if base is not None and not (config.merge or config.base_repo_id):
        require_base_on_hub(base, config.repo_id)
    api = HfApi()
    facts = card_facts(api, config.repo_id, source, evaluations, config.revision, config.base_repo_id)
    with ExitStack() as stack:
        try:
            api.whoami()
            directory = checkpoint
            if config.merge:
                directory = Path(stack.enter_context(TemporaryDirectory())) / "merged"
                export(checkpoint, directory)
                facts = replace(facts, policy=read_policy(directory))
            contents: dict[str, Path | bytes] = {
                path.relative_to(directory).as_posix(): path
                for path in directory.rglob("*")
                if path.is_file()
            }
            drawn = pictures(facts)
            contents |= {picture_path(picture): png for picture, png in drawn.items()}
            contents["README.md"] = str(model_card(facts, drawn)).encode()
            if config.base_repo_id:
                contents[ADAPTER_CONFIG] = _with_base(api, checkpoint / ADAPTER_CONFIG, config.base_repo_id)
            return _commit(api, config, contents)
        except _FAILURES as error:
            raise OSError(
                f"'{checkpoint}' could not be pushed to {config.repo_id}: {_reason(error)} The checkpoint is "
                f"where it was; `{config.command}` pushes it."
            ) from error


def push_checkpoint(directory: Path, repo_id: str, private: bool | None) -> None:
    """Push a checkpoint that can be resumed to `checkpoints/` of a repository, by LeRobot's own helper.

    Raises:
        OSError: If the Hub refuses or is out of reach.
    """
    try:
        push_checkpoint_to_hub(directory, repo_id, private=private)
    except _FAILURES as error:
        raise OSError(
            f"The checkpoint {directory} could not be pushed to {repo_id}: {_reason(error)} It is where it "
            f"was, and `hf upload {repo_id} {directory} checkpoints/{directory.name}` pushes it."
        ) from error


def _commit(api: HfApi, config: PushConfig, contents: dict[str, Path | bytes]) -> str:
    """All of it or nothing."""
    if config.private:
        _require_private(api, config.repo_id)
    url = api.create_repo(config.repo_id, private=config.private, exist_ok=True)
    if config.revision:
        api.create_branch(config.repo_id, branch=config.revision, exist_ok=True)
    api.create_commit(
        config.repo_id,
        [CommitOperationAdd(name, content) for name, content in sorted(contents.items())],
        commit_message="Upload policy, processors and card",
        revision=config.revision,
    )
    return url


def _require_private(api: HfApi, repo_id: str) -> None:
    """A repository that is there stays as it is, whatever `create_repo` is asked for."""
    if api.repo_exists(repo_id) and not api.model_info(repo_id).private:
        raise ValueError(
            f"{repo_id} should be private and is public already; make it private in its settings, or name "
            "another repository."
        )


def _adapter_base(checkpoint: Path) -> str | None:
    """The base that an adapter names, None for a whole policy."""
    file = checkpoint / ADAPTER_CONFIG
    return json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"] if file.is_file() else None


def _with_base(api: HfApi, file: Path, base: str) -> bytes:
    """An adapter's config with its base as others find it."""
    if not api.file_exists(base, "model.safetensors"):
        raise ValueError(f"The base '{base}' should have a model.safetensors on the Hub; push it first.")
    adapter = json.loads(file.read_text(encoding="utf-8"))
    return json.dumps({**adapter, "base_model_name_or_path": base, "revision": None}, indent=2).encode()


def _reason(error: BaseException) -> str:
    """What happened, and what to do about it."""
    chain: list[BaseException] = [error]  # An upload that fails is a RuntimeError because of it.
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    hint = ""
    if refusal := next((one for one in chain if isinstance(one, HfHubHTTPError)), None):
        status = refusal.response.status_code
        hint = "The Hub itself has trouble." if status >= 500 else _HINTS.get(status, "")
    elif isinstance(error, LocalTokenNotFoundError):
        hint = _HINTS[401]
    elif any(isinstance(one, httpx.HTTPError | ConnectionError) for one in chain):
        hint = "Look at the connection (HF_HUB_OFFLINE, HF_ENDPOINT, the proxy)."
    return " ".join(f"{type(error).__name__}: {error} {hint}".split())
