"""The kind flow distilled to one or two steps, as the decoder of DALL-E 3 is: a consistency model (arXiv 2303.01469 §4).

One network has two roles, which an input tells apart. As the teacher it learns rectified flow: from a point of the line it predicts
the mean of the images that may be the line's end. As the student it jumps from a point to the one image that the teacher's
`teacher_steps` Euler steps reach from there: its target is its own image from the next point, to which the teacher leads.
First it is the teacher only; from the update `distill_from` on half of the images of a batch are the teacher's.

In the papers the teacher is a finished model and keeps its weights. Here both learn until the end, so that the teacher too
is trained at the low rates of the last updates, and a training needs no second model. The target at time 0 is the point itself, which is what
c_skip and c_out make sure of there.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from thousandwords.core.config import check_minimums
from thousandwords.decoders.base import Decoder, Logs
from thousandwords.nn.rectified_flow import noise_of, point_at, random_noise, random_times
from thousandwords.nn.token_unet import TokenUNet, TokenUNetConfig

TEACHER, STUDENT = 0.0, 1.0  # the roles


@dataclass(frozen=True)
class ConsistencyConfig(TokenUNetConfig):
    sigma: float = 0.1  # deviation of the noise on the tokenizer's image, of a color channel in [0, 1]
    steps: int = (
        1  # jumps of decoding, each after the first from between its image and a noisy one; DALL-E 3's has 2
    )
    teacher_steps: int = 4  # Euler steps of the teacher, whose end the student learns
    distill_from: int = 600  # update from which half of a batch teaches the student

    def __post_init__(self) -> None:
        check_minimums(self, "consistency", sigma=0, steps=1, teacher_steps=1, distill_from=0)
        self.check_sizes("consistency")
        if self.teacher_steps % self.steps:
            raise ValueError(
                f"consistency.steps is {self.steps}, but the student learns to jump from the {self.teacher_steps} times of "
                "consistency.teacher_steps only. Set steps to 1, or to another divisor of teacher_steps"
            )


class ConsistencyDecoder(TokenUNet, Decoder):
    """Tokens (B, L) and the tokenizer's images (B, 3, H, W) in [0, 1] -> images (B, 3, H, W) in [0, 1]."""

    config_class = ConsistencyConfig

    def __init__(self, config: ConsistencyConfig, image_size: int, vocab_size: int, scales: tuple[int, ...]):
        inputs = {"images_seen": 2, "has_time": True, "has_role": True}
        super().__init__(config, "consistency", image_size, vocab_size, scales, **inputs)

    def decode(self, tokens: Tensor, images: Tensor) -> Tensor:
        """Token ids (B, L) int64 and the tokenizer's images of them (B, 3, H, W) -> images (B, 3, H, W) in [0, 1]."""
        steps, reached = self.config.steps, images
        for step, noise in enumerate(noise_of(tokens, images, steps)):
            time = images.new_full((len(images),), (steps - step) / steps)
            current = point_at(time, images + self.config.sigma * noise, reached)
            reached = self._predict(tokens, images, current, time, STUDENT)
        return reached.clamp(0, 1)

    def loss(
        self, images: Tensor, tokens: Tensor, decoded: Tensor, step: int, rng: torch.Generator
    ) -> tuple[Tensor, Logs]:
        """The mean squared error, of a color channel in [0, 1]: of the teacher's image at a random time, and from
        `distill_from` on for half of the rows of the student's, compared with its own one from the teacher's next point."""
        start = decoded + self.config.sigma * random_noise(images, rng)
        time, targets = random_times(images, rng), images
        role = torch.full_like(time, TEACHER)
        point = point_at(time, start, images)
        if step >= self.config.distill_from:
            half = len(images) // 2
            taught = slice(half, None)
            left = torch.randint(
                self.config.teacher_steps, time[taught].shape, generator=rng, device=rng.device
            )
            time[taught], role[taught] = (left.to(time.device) + 1) / self.config.teacher_steps, STUDENT
            point = point_at(time, start, images)
            jumped = self._student_target(tokens[taught], decoded[taught], point[taught], time[taught])
            targets = torch.cat([images[:half], jumped])
        predicted = decoded + self.correction(tokens, torch.cat([decoded, point], dim=1), time, role)
        squared = (predicted - targets).square().mean()
        loss, logged = self.training_only(squared, images, predicted, self.output[-1].weight, step)
        return loss, {"squared_error": squared.detach(), **logged}

    @torch.no_grad()
    def _student_target(self, tokens: Tensor, images: Tensor, current: Tensor, time: Tensor) -> Tensor:
        """The student's images (B, 3, H, W) from the points that the teacher reaches with one step; at time 0 these points."""
        after = (time - 1 / self.config.teacher_steps).clamp(min=0)
        end = self._predict(tokens, images, current, time, TEACHER)
        reached = point_at(after / time, current, end)
        jumped = self._predict(tokens, images, reached, after, STUDENT)
        return jumped.where((after > 0)[:, None, None, None], reached)

    def _predict(self, tokens: Tensor, images: Tensor, current: Tensor, time: Tensor, role: float) -> Tensor:
        """The images (B, 3, H, W), not limited to [0, 1], that the network in that role predicts from the tokenizer's `images`
        and the points `current` at each row's time (B,)."""
        roles = torch.full_like(time, role)
        return images + self.correction(tokens, torch.cat([images, current], dim=1), time, roles)
