"""Know the bundled models of earlier versions by their files: what they made cannot be made again with today's."""

from __future__ import annotations

from nrg_sampler.checkpoints import BUNDLED, bundled_folder
from nrg_sampler.runs.manifest import Manifest, model_fingerprint

REPOSITORY = "https://github.com/nrg-sampler/nrg-sampler"
# fingerprint -> the version that bundled it
PIPELINES = {"cb40b1c20d9ffc69f00a253ba19451571384dc1562535bfcda13b59d1258dc84": "0.1.0"}
REWARDS = {"49a72ab42d06517fdb67dd6dadd6d218edf71c55ff82b241fb879e7c0646ab8f": "0.1.0"}


def require_todays(manifest: Manifest, name: str) -> None:
    """Refuse a manifest of a bundled model or reward that was exchanged for another since.

    Args:
        manifest: What is to be made again.
        name: Of its file, for the message.

    Raises:
        ValueError: With the version that has it.
    """
    recipe, recorded = manifest.recipe, manifest.fingerprints
    parts = [("model", recipe.model, PIPELINES, "pipeline")]
    if recipe.guidance.scale:
        parts.append(("reward", recipe.model if recipe.reward is None else recipe.reward, REWARDS, "reward"))
    for part, used, earlier, folder in parts:
        if used != BUNDLED:
            continue
        version = earlier.get(recorded.get(part, ""))
        if version is not None and recorded[part] != model_fingerprint(bundled_folder(folder)):
            raise ValueError(
                f"Expected a manifest of the bundled {part} as it is now, but {name} is of that of {version}, and the "
                f"bundled {part} was trained again since; install that version to make the file again: "
                f"pip install git+{REPOSITORY}@v{version}."
            )
