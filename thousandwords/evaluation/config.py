"""The section `evaluation` of params.yaml."""

from dataclasses import dataclass

from thousandwords.core.config import check_minimums

# split -> whether training had the color-shape pairs of its captions; said only of the built-in scenes
SPLIT_NAMES = {"validation": "seen", "unseen": "unseen"}


def split_name(split: str, is_scene: bool) -> str:
    """What pages call a split."""
    return SPLIT_NAMES.get(split, split) if is_scene else {"validation": "held out"}.get(split, split)


@dataclass(frozen=True)
class EvaluationConfig:
    """The section `evaluation` of params.yaml."""

    num_images: int = 1024  # validation images that are reconstructed
    kmeans_images: int = 4096  # training images that the k-means baseline learns from
    kmeans_iterations: int = 20
    report_images: int = 16  # originals and reconstructions, and prompts per split, in the report
    fid_images: int = 384  # validation images in the Fréchet distance; the paper has 30,000; 0 turns it off
    # network that images are compared by: a file of FID's Inception or an open_clip checkpoint; null: own CLIP
    features: str | None = None
    # training images among which near duplicates of validation images are searched; 0 turns it off
    overlap_images: int = 2048
    # cosine above which an image is a near duplicate; the paper does not give its own. On the scenes 0.98 misses
    # none. null: such that 1 image in 100 has one by chance (`image_fidelity.chance_threshold`)
    overlap_threshold: float | None = 0.98

    def __post_init__(self) -> None:
        check_minimums(
            self, "evaluation", num_images=1, kmeans_images=1, kmeans_iterations=1, report_images=1
        )
        for name in ("fid_images", "overlap_images"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"evaluation.{name} is {getattr(self, name)}; it is a count, and 0 turns it off"
                )
        if self.overlap_threshold is not None and not -1 <= self.overlap_threshold <= 1:
            raise ValueError(
                f"evaluation.overlap_threshold is {self.overlap_threshold}; it is a cosine, from -1 to 1"
            )
