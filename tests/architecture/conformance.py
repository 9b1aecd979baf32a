"""make conformance: each number of the paper, its value here, and whether its tests pass.

A test names the rows it checks: `@pytest.mark.paper("generator: masks")`. A row is green when it has tests
and all of them passed. Sources: P the paper (arXiv 2102.12092), C the released dVAE code, A an author's
answer in that code's issues, T a third party, D arithmetic, ? not settled in public and therefore a setting. Rows of
other kinds than the paper's have their own papers and codes, named above them.
"""

import ast
import contextlib
import io
import itertools
import sys
import textwrap
from collections import defaultdict
from dataclasses import dataclass

import pytest

from tests.helpers.paths import ROOT
from thousandwords.core.command_line import one_sentence

WIDTHS = (22, 3, 58, 20)


@dataclass(frozen=True)
class Row:
    """One number of the paper: the part it belongs to, what it is, its source, and its value here."""

    part: str
    what: str
    source: str
    value: str

    @property
    def id(self) -> str:
        """What a test names: "generator: masks"."""
        return f"{self.part}: {self.what}"


# fmt: off
ROWS = (
    # image tokens: the discrete VAE
    Row("tokenizer", "input, latent", "P", "256×256 RGB -> 32×32 tokens of 8,192, uniform prior"),
    Row("tokenizer", "encoder", "C", "7×7 stem, 4 groups × 2 blocks of 1, 2, 4, 8 × 256, max-pool, ReLU, 1×1 to 8,192"),
    Row("tokenizer", "decoder", "C", "1×1 from 8,192 to 128 (the codebook), 4 groups × 2 blocks of 8, 4, 2, 1 × 256, nearest, 6 maps"),
    Row("tokenizer", "block", "C", "identity + 1/64 · 4 × (ReLU, conv): 3,3,3,1 / 1,3,3,3, bottleneck a quarter"),
    Row("tokenizer", "init", "C", "weights N(0, 1/√fan_in), biases 0"),
    Row("tokenizer", "size", "D", "encoder 53,786,240, decoder 43,829,766 parameters"),
    Row("tokenizer", "output", "P", "logit-Laplace: 3 maps of μ, 3 of ln b"),
    Row("tokenizer", "pixel map", "P C", "φ(x) = 0.8 x/255 + 0.1; reconstruction φ⁻¹(sigmoid μ), clamped"),
    Row("tokenizer", "relaxation", "P A", "Gumbel-softmax at τ; KL of the ordinary categorical"),
    Row("tokenizer", "loss", "P", "(−ln p + β KL), summed over the image, per 256·256·3; may be negative"),
    Row("tokenizer", "β", "P A", "0 -> 6.6 over 5,000 updates, cosine; 3.3 at 2,500"),
    Row("tokenizer", "τ", "P", "1 -> 1/16 over 150,000 updates, cosine; 0.53125 at 75,000"),
    Row("tokenizer", "learning rate", "P", "1e-4 -> 1.25e-6 over 1,200,000 updates, cosine; 5.06e-5 at 600,000"),
    Row("tokenizer", "optimizer", "P", "AdamW .9, .999, 1e-8, decay 1e-4; EMA .999"),
    Row("tokenizer", "scale", "P", "batch 512, 3,000,000 updates, mixed precision"),
    Row("tokenizer", "augmentation", "P", "tokenizer: square anywhere, side 288…384, crop 256, flipped or not"),
    Row("tokenizer", "tokens for stage two", "P A", "arg-max of the logits, no Gumbel noise"),
    # another kind of image tokenizer: P arXiv 1711.00937, C code of its authors or of the quantizer's
    Row("vqvae", "trunk", "C", "the dVAE's, so that only the bottleneck differs (CIFAR example: 2 × conv 4 stride 2, 2 blocks of 32)"),
    Row("vqvae", "pixels, reconstruction", "C", "[−.5, .5]; squared error ÷ variance of the pixels (a setting, about 20 = 1/.05)"),
    Row("vqvae", "straight-through", "P C", "the decoder sees the code, its gradient reaches the latent as if it had seen the latent"),
    Row("vqvae", "loss", "P", "squared error + codebook term (gradient) + β ‖latent − sg code‖², β .25"),
    Row("vqvae", "EMA codebook", "P C", "n ← γn + (1−γ) count, m ← γm + (1−γ) sum, γ .99; code = m/n, both from the start's first value"),
    Row("vqvae", "EMA zero-debias", "C", "n and m divided by 1 − γ^t: cancels in m/n; no ε, an unused code keeps its place"),
    Row("vqvae", "optimizer", "C", "Adam 3e-4, batch 32 (VQ-VAE-2: 128), constant: settings"),
    Row("vqvae", "VQ-VAE-2", "P T", "top grid of half the side first; the bottom's quantizer sees the decoded top; weight .25, γ .99"),
    Row("vqvae", "VQ-VAE-2 sizes", "T", "grids of image/8 and image/4; 128 wide, codes 512 × 64, a codebook for each grid: settings"),
    Row("vqvae", "l2 codes", "C", "latents and codes of unit length, normalized where they are used"),
    Row("vqvae", "FSQ", "P C", "tanh to L levels, even L shifted by half a level, ε 1e-3, ÷ ⌊L/2⌋; first dimension fastest; no loss"),
    Row("vqvae", "FSQ levels", "P", "512 [8,8,8]; 1,000 [8,5,5,5]; 4,375 [7,5,5,5,5]; 15,360 [8,8,8,6,5]"),
    Row("vqvae", "SimVQ", "C", "fixed table N(0, d^−½) through one learned affine map; codebook 1, commitment .25"),
    # another one: C taming-transformers (arXiv 2012.09841) and LlamaGen (2406.06525), T what others read in their files.
    # rFID on ImageNet is no row: the data and the published files are not here
    Row("vqgan", "trunk", "C", "128 × (1,1,2,2,4), 2 blocks a level, decoder 3; identity + 2 × (norm, swish, conv 3)"),
    Row("vqgan", "norms", "C", "GroupNorm of 32 groups, ε 1e-6"),
    Row("vqgan", "attention", "C", "one head, after each block of the last level and in the middle"),
    Row("vqgan", "down, up", "C", "zeros right and bottom by 1, conv 3 stride 2; nearest × 2, conv 3"),
    Row("vqgan", "latent", "C", "256 -> 1×1 -> 256 (taming); 256 -> 1×1 -> 8, unit length (LlamaGen)"),
    Row("vqgan", "tokens", "C", "1,024 or 16,384 × 256 (taming); 16,384 × 8, normalized also where they are decoded (LlamaGen)"),
    Row("vqgan", "codebook start", "C", "uniform ±1/K (taming); the same, then unit length (LlamaGen)"),
    Row("vqgan", "f8", "C T", "× (1,1,2,4), 1×1 to 8,192 logits, 8,192 × 256, arg-max (taming, Gumbel); × (1,2,2,4) (LlamaGen VQ-8)"),
    Row("vqgan", "relaxation", "C T", "Gumbel: straight-through, KL 1e-8, τ .9 -> 1e-6 over 1,000,001 updates, cosine"),
    Row("vqgan", "pixels, reconstruction", "C", "[−1, 1]; absolute error (taming), squared error (LlamaGen)"),
    Row("vqgan", "quantizer loss", "C", "commitment 1, codebook .25 (taming: β on the other term); codebook 1, commitment .25 (LlamaGen, the default)"),
    Row("vqgan", "perceptual term", "C", "LPIPS × 1.0: five parts of VGG-16, each position of length 1, linear weights; a scorer's maps instead (a setting)"),
    Row("vqgan", "adversary", "C", "PatchGAN 64, 3 layers, kernel 4, LeakyReLU .2, N(0, .02); hinge, halved; decoder −mean D; GroupNorm or none for BatchNorm"),
    Row("vqgan", "one scalar loss", "D", "reconstruction + λ (−mean D°(x̂)) + hinge(D, x, sg x̂) has the gradients of the two alternating steps"),
    Row("vqgan", "adaptive weight", "C", "weight × ‖∇ reconstruction‖ / (‖∇ adversary‖ + 1e-4) at the last convolution, clamped to [0, 1e4] (LlamaGen: .5, not adaptive)"),
    Row("vqgan", "adversary start", "C", "taming update 250,001 (16384: 0), LlamaGen 20,000; the weight then rises over `ramp_steps` (settings)"),
    Row("vqgan", "optimizer", "C", "Adam .5, .9, 4.5e-6 × batch, constant, no EMA, no decay (taming); Adam .9, .95, 1e-4, batch 128, clip 1 (LlamaGen): settings"),
    Row("vqgan", "size", "D", "343 tensors, 76,073,859 (taming f16-16384), 72,141,699 (1,024); Gumbel f8 301, 68,995,971; 344 with a buffer, 71,948,939 (VQ-16), 300, 70,175,371 (VQ-8)"),
    Row("vqgan", "key layout", "C", "decoder levels from the finest (taming) or the coarsest (LlamaGen); state_dict; ema, model or state_dict"),
    Row("vqgan", "to ignore", "C", "loss.*, optimizer states, callbacks keyed by a class; discriminator, optimizer, steps, args, codebook_used"),
    # and another: P arXiv 2404.02905, C its authors' code; the values are those of the published tokenizer
    Row("multi_scale", "trunk", "C", "vqgan's, 160 wide, latent 32; 3×3 next to the codes; pixels in [−1, 1], output clamped to it"),
    Row("multi_scale", "tokens", "C P", "one codebook of 4,096 × 32 for all scales, plain squared distance; by direction: an option, off"),
    Row("multi_scale", "scales", "C", "256²: 1,2,3,4,5,6,8,10,13,16 = 680 tokens; 512²: 1,2,3,4,6,9,13,18,24,32 = 2,240; a setting"),
    Row("multi_scale", "one scale", "C P", "what is left over -> area means (not at the last) -> nearest code -> bicubic -> φ; added to the latents so far"),
    Row("multi_scale", "phi", "C", "½ 3×3 convolution + ½ identity; 4 of them at linspace(1/12, 11/12), nearest to i/(S−1); other n: (2k+1)/2n"),
    Row("multi_scale", "loss of tokens", "C", "mean over scales of ‖so far − sg f‖² + .25 ‖sg so far − f‖², means over channels; straight-through once, on the sum"),
    Row("multi_scale", "size", "D", "encoder 44,107,872, decoder 64,653,923; 108,989,315 with a buffer of 40,960 that is not kept"),
    Row("multi_scale", "keys", "C", "324 tensors under taming's names, attention .norm, .qkv, .proj_out; quant_resi.qresi_ls.0…3; ema_vocab_hit_SV dropped"),
    Row("multi_scale", "training", "?", "unpublished; settings: share of images that stop at an earlier scale, start and restarts of codes, weight of pixels"),
    # the transformer
    Row("generator", "sequence", "P", "256 text tokens of 16,384, lower-cased, then 1,024 image tokens of 8,192"),
    Row("generator", "pads", "P", "a learned pad for each of the 256 text positions"),
    Row("generator", "positions", "P", "learned for text; row + column for the image; start of text, start of image"),
    Row("generator", "size", "P D", "64 layers, 62 heads × 64, width 3,968: 12,092,178,432 weights"),
    Row("generator", "masks", "P", "row, column, convolutional 11×11, with wrap-around; all see the text"),
    Row("generator", "layer rule", "P D", "column where (i − 2) mod 4 = 0, else row; the last convolutional"),
    Row("generator", "column trick", "P", "hidden states of the image transposed before column attention: a column is a line"),
    Row("generator", "loss", "P", "1/8 text + 7/8 image, each averaged over its own kind"),
    Row("generator", "separation", "P", "text positions predict text tokens only, image positions image tokens only"),
    Row("generator", "text noise", "P", "BPE-dropout 10 % in training"),
    Row("generator", "augmentation", "P", "generator: square in the middle quarter, side 256…288, crop 256, never flipped"),
    Row("generator", "optimizer", "P", "AdamW .9, .96, 1e-8, decay .045 on matrices only; clip 4; variance ≤ 5"),
    Row("generator", "schedule", "P", "warm-up over 5,000 updates to 4.5e-4; halved on a plateau"),
    Row("generator", "EMA", "?", "every 25 updates; decay .99 (a setting)"),
    Row("generator", "batch", "P", "1,024"),
    Row("generator", "precision", "P", "float16, 128 scales: M·2¹³, ×2^(1/1000), ÷√2 and skip, in [M·2⁷, M·2²⁴]; float32 islands"),
    Row("generator", "gradient compression", "P", "PowerSGD, rank 896, 86 %; error feedback in the checkpoint"),
    Row("generator", "result", "A", "the loss is in the unit of the paper's 3.6 nats (12 billion weights were not trained here)"),
    Row("generator", "?", "?", "activation GELU, init N(0, .02), dropout 0; BPE of the captions, no special tokens (settings)"),
    # its options, from LlamaGen (arXiv 2406.06525) and RAR (2411.00776)
    Row("generator options", "random orders", "P C", "an image's tokens in an order of its own, share 1 until update 125,000 of 250,000, 0 from 187,500 on, linear (RAR); then exact raster"),
    Row("generator options", "target position", "P C", "what is before a token gets a learned embedding of that token's position, a table of L vectors (RAR)"),
    Row("generator options", "causal layers", "C", "with random orders each layer sees all tokens before; RAR's AdaLN and embedding of the step are not here"),
    Row("generator options", "dropout", "C", "of residual branches, a setting (RAR, LlamaGen: .1); theirs of attention weights and embeddings is not here"),
    Row("generator options", "2-D rotary positions", "C", "base 10,000; half of a head's channels from the row, half from the column; text at angle 0 (LlamaGen's code zeroes its q and k)"),
    Row("generator options", "SwiGLU", "C", "silu(gates) × values at 8/3 of the width (LlamaGen-B: 768 -> 2,048); rounded up to 8, LlamaGen to 256"),
    # another generator: VAR (arXiv 2404.02905), STAR (2406.10797) and Switti (2412.01819), settings of one kind
    Row("next_scale", "shape", "C", "16 layers, 16 heads × 64, width 1,024 (VAR-d16), MLP × 4 with exact GELU (VAR's tanh: a setting); SwiGLU and norms after sublayers (Switti) not here"),
    Row("next_scale", "start, 1×1", "C", "the mean vector of the caption, projected, + position and level (VAR: class; STAR, Switti: pooled CLIP text)"),
    Row("next_scale", "text", "C", "cross-attention between self-attention and MLP, keys and values from one bias-free map, pads masked; a tower trained along in place of CLIP"),
    Row("next_scale", "condition", "C", "AdaLN of 6 vectors per block and 2 before the head (VAR, Switti) or none (STAR); gates start at 1, VAR's near 0"),
    Row("next_scale", "norms", "C", "LayerNorm, ε 1e-6, one per sublayer incl. cross-attention; affine where AdaLN is off"),
    Row("next_scale", "attention", "C", "q, k to unit length × a number per head, starts at 4, at most 100; also in cross-attention"),
    Row("next_scale", "positions", "C", "2-D RoPE, every scale stretched to 0…64 (Switti 128), + level; + learned row and column (VAR's learned absolute: a setting)"),
    Row("next_scale", "mask", "C", "each scale sees only itself (Switti, the default), or block-causal over scales (VAR, STAR)"),
    Row("next_scale", "input at scale i > 0", "C", "latents so far, area-mean to the next size, linear to width; codes and φ are the tokenizer's"),
    Row("next_scale", "loss", "C", "mean cross-entropy over all tokens of all scales, no smoothing"),
    Row("next_scale", "flips", "C", "Infinity's: a share of the tokens (.05; there up to .3 of the bits) is wrong in training, later residuals are targets anew"),
    Row("next_scale", "drop", "C", "empty caption .1; drop path .1·depth/24 (VAR) not here"),
    Row("next_scale", "guidance", "C", "(1+t)·c − t·u, t = (guidance − 1)·i/(S−1) (VAR), off at the last scale (Switti)"),
    Row("next_scale", "VAR's classes", "C", "1,000 and a further one for none; a caption is the number of a class, one token each, looked up: start and AdaLN"),
    Row("next_scale", "VAR's keys", "C", "class_emb, pos_start, pos_1LC, lvl_embed, word_embed, blocks.{i}.{attn, ffn, ada_lin.1}, head_nm, head; shared AdaLN (512²) refused"),
    Row("next_scale", "VAR's sizes", "D", "d16 310,299,904, d20 600,942,736, d24 1,033,436,224, d30 2,010,077,956 (published: 310M, 600M, 1.0B, 2.0B)"),
    # decoders: P DALL-E 3's report, C the released consistency decoder for SD latents and FlowMo (arXiv 2503.11056);
    # consistency models 2303.01469, rectified flow 2209.03003
    Row("decoders", "network", "P C", "U-Net of convolutions only; latents beside the noisy image (SD's nearest × 8; here the tokenizer's image, and tokens at every level)"),
    Row("decoders", "size", "C", "320, 640, 1,024, 1,024 wide, 3 blocks a level (SD's): settings"),
    Row("decoders", "flow", "C", "a line from noise to the image, velocity noise − image (FlowMo); here from the tokenizer's image + σ noise, by its end, which says the velocity; Euler"),
    Row("decoders", "times", "C", "more of the noisy ones: logit-normal + 10 % uniform (FlowMo); here t → 3t / (1 + 2t)"),
    Row("decoders", "training", "C", "Adam 1e-4, .9, .95, EMA .9999, LPIPS × .1, 25 Euler steps (FlowMo): settings"),
    Row("decoders", "distillation", "P", "the student's image of a point = its own one of the point to which the teacher steps, without gradient; teacher: 4 Euler steps (SD: 1,024 times, cosine ᾱ)"),
    Row("decoders", "teacher", "?", "the same network in another role, trained along; in the papers a finished model"),
    Row("decoders", "boundary", "P C", "at time 0 the point itself: the target there (c_skip, c_out with σ_data .5 in SD's)"),
    Row("decoders", "one or two steps", "P C", "jumps from noise, then from between image and new noise: times 1 and ½ (SD's: 1,008 and 512 of 1,024)"),
    # samples, ranking, evaluation
    Row("evaluation", "sampling", "P", "temperature 1, no truncation; 512 candidates, ranked by CLIP's cosine"),
    Row("evaluation", "best of N", "P", "exact expectation over all subsets, for N = 1, 2, 4, …"),
    Row("evaluation", "completion", "P", "the top rows of an image (or any cells) fixed, the rest sampled"),
    Row("evaluation", "evaluation", "P", "30,000 held-out captions; Fréchet distance and Inception Score, after a blur of radius 0…8"),
    Row("evaluation", "overlap", "P", "nearest training neighbors by an embedding, a threshold; figures with and without them"),
    Row("evaluation", "human study", "P", "make human-eval-sheet, make human-eval-votes: the majority of five raters, with its interval (no study was held here)"),
    Row("evaluation", "data filter", "P", "captions too short, not English or boiler-plate, aspect outside [1/2, 2]: dropped, counted"),
)
# fmt: on


def marked_tests() -> dict[str, list[str]]:
    """The tests of each row, read from the source: {"generator: masks": ["tests/…/test_masks.py::test_…"]}."""
    tests = defaultdict(list)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)) if "mark.paper(" in source else ():
            for decorator in getattr(node, "decorator_list", ()):
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.paper":
                    for row_id in map(ast.literal_eval, decorator.args):
                        tests[row_id].append(f"{path.relative_to(ROOT).as_posix()}::{node.name}")
    return dict(tests)


class Outcomes:
    """A pytest plugin that records which tests passed and which failed."""

    def __init__(self) -> None:
        self.passed: set[str] = set()
        self.failed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.partition("[")[0]
        if report.when == "call" and report.passed:
            self.passed.add(name)
        if not report.passed:
            self.failed.add(name)


def run_tests(nodes: list[str]) -> Outcomes:
    """Run tests without output."""
    outcomes = Outcomes()
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:terminalreporter", *nodes], plugins=[outcomes])
    return outcomes


def table_of(outcomes: Outcomes, tests: dict[str, list[str]]) -> tuple[list[str], int]:
    """The lines of the table, and the number of green rows; failed tests of the other rows are marked."""
    lines, green = [line("row", "src", "value", "tests"), line(*("-" * width for width in WIDTHS))], 0
    for previous, row in zip((None, *ROWS), ROWS, strict=False):
        lines += [] if previous and previous.part == row.part else [f"--- {row.part}"]
        nodes = tests.get(row.id, [])
        is_green = {node: node in outcomes.passed and node not in outcomes.failed for node in nodes}
        green += bool(nodes) and all(is_green.values())
        names = [("" if is_green[node] else "NOT GREEN ") + short_name(node) for node in nodes]
        values = textwrap.wrap(row.value, WIDTHS[2])
        columns = [row.what], [row.source], values, names or ["NOT GREEN no test"]
        lines += [line(*cells) for cells in itertools.zip_longest(*columns, fillvalue="")]
    return lines, green


def short_name(node: str) -> str:
    """tests/unit/generators/test_masks.py::test_the_mask -> masks::the_mask"""
    file, name = node.split("::")
    return f"{file.rpartition('/test_')[2].removesuffix('.py')}::{name.removeprefix('test_')}"


def line(*cells: str) -> str:
    return " | ".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()


def main() -> None:
    tests = marked_tests()
    outcomes = run_tests(sorted({node for nodes in tests.values() for node in nodes}))
    lines, green = table_of(outcomes, tests)
    print("\n".join(lines))
    print(f"{len(ROWS)} rows, {green} green")
    sys.exit(green < len(ROWS))


if __name__ == "__main__":
    with one_sentence("conformance"):
        main()
