"""python -m tests.conformance (make conformance): each fact of the paper, the value it has here, and the tests that hold it.

A row is green when all of its tests passed. Sources: P the paper (arXiv 2102.12092), C the released dVAE code, A an author's
answer in that code's issues, D arithmetic, ? not settled in public and therefore a setting.
"""
from __future__ import annotations

import contextlib
import io
import itertools
import sys
import textwrap
from dataclasses import dataclass

import pytest

WIDTHS = (20, 3, 58, 20)


@dataclass(frozen=True)
class Row:
    """One fact: what, its source, the value here, and the tests (file::name, without tests/test_ and test_) that hold it."""

    what: str
    source: str
    value: str
    tests: tuple[str, ...]

    @property
    def nodes(self) -> list[str]:
        """The tests as pytest names them: "masks::the_mask" -> "tests/test_masks.py::test_the_mask"."""
        return ["tests/test_{}.py::test_{}".format(*name.split("::")) for name in self.tests]


ROWS = (
    # words of a picture: the discrete VAE
    Row("input, latent", "P", "256×256 RGB -> 32×32 words of 8,192, uniform prior",
        ("paper::a_picture_of_256_pixels_is_32_by_32_words_of_8192_with_a_uniform_prior",
         "dvae::the_kl_is_zero_for_even_logits_and_the_whole_vocabulary_for_certain_ones")),
    Row("encoder", "C", "7×7 stem, 4 groups × 2 blocks of 1, 2, 4, 8 × 256, max-pool, ReLU, 1×1 to 8,192",
        ("paper::the_encoder_is_a_stem_of_7_four_groups_of_two_blocks_with_max_pooling_and_a_1x1_to_the_words",)),
    Row("decoder", "C", "1×1 from 8,192 to 128 (the codebook), 4 groups × 2 blocks of 8, 4, 2, 1 × 256, nearest, 6 maps",
        ("paper::the_decoder_begins_with_the_codebook_and_ends_in_six_maps",)),
    Row("block", "C", "identity + 1/64 · 4 × (ReLU, conv): 3,3,3,1 / 1,3,3,3, bottleneck a quarter",
        ("paper::a_block_adds_a_64th_of_a_bottleneck_of_four_convolutions_to_its_identity",
         "dvae::the_decoder_blocks_begin_with_the_small_kernel")),
    Row("init", "C", "weights N(0, 1/√fan_in), biases 0",
        ("paper::first_weights_are_normal_with_the_inverse_root_of_their_inputs",
         "dvae::weights_start_normal_with_the_inverse_root_of_their_inputs_and_biases_at_zero")),
    Row("size", "D", "encoder 53,786,240, decoder 43,829,766 parameters",
        ("paper::encoder_and_decoder_have_the_released_numbers_of_parameters",)),
    Row("output", "P", "logit-Laplace: 3 maps of μ, 3 of ln b",
        ("paper::the_likelihood_is_the_logit_laplace_of_the_paper", "dvae::the_logit_laplace_density_integrates_to_one",
         "dvae::the_log_likelihood_of_middle_grey_is_known")),
    Row("pixel map", "P C", "φ(x) = 0.8 x/255 + 0.1; reconstruction φ⁻¹(sigmoid μ), clamped",
        ("dvae::the_pixel_map_keeps_a_margin_of_a_tenth_and_is_undone",)),
    Row("relaxation", "P A", "Gumbel-softmax at τ; KL of the ordinary categorical",
        ("paper::the_kl_is_that_of_an_ordinary_categorical_whatever_the_temperature",
         "dvae::gumbel_words_are_drawn_as_often_as_the_logits_say",
         "dvae::gumbel_words_are_distributions_that_harden_as_the_temperature_falls")),
    Row("loss", "P", "(−ln p + β KL), summed over the picture, per 256·256·3; may be negative",
        ("paper::the_loss_is_likelihood_and_weighted_kl_summed_over_the_picture_per_channel_of_a_pixel",)),
    Row("β", "P A", "0 -> 6.6 over 5,000 updates, cosine; 3.3 at 2,500",
        ("paper::the_kl_weight_rises_along_a_cosine_for_5000_updates",
         "dvae::the_kl_weight_rises_and_the_temperature_falls_along_cosines")),
    Row("τ", "P", "1 -> 1/16 over 150,000 updates, cosine; 0.53125 at 75,000",
        ("paper::the_temperature_falls_along_a_cosine_for_150_000_updates",)),
    Row("learning rate", "P", "1e-4 -> 1.25e-6 over 1,200,000 updates, cosine; 5.06e-5 at 600,000",
        ("paper::the_tokenizers_rate_falls_along_a_cosine_for_1_200_000_updates",
         "training::the_cosine_may_end_before_the_training_does")),
    Row("optimizer", "P", "AdamW .9, .999, 1e-8, decay 1e-4; EMA .999",
        ("paper::the_tokenizers_optimizer_is_adamw_with_an_average", "optim::it_steps_as_a_plain_adamw_does",
         "optim::the_average_has_its_closed_form")),
    Row("scale", "P", "batch 512, 3,000,000 updates, mixed precision",
        ("paper::the_tokenizers_training_has_three_million_updates_of_512_pictures_in_mixed_precision",)),
    Row("augmentation", "P", "tokenizer: square anywhere, side 288…384, crop 256, turned or not",
        ("paper::the_tokenizer_sees_the_papers_random_crops",
         "augmentation::the_tokenizer_sees_squares_of_9_to_12_eighths_of_its_size",
         "augmentation::the_tokenizers_squares_lie_anywhere", "augmentation::all_sides_are_drawn_and_no_others",
         "augmentation::half_of_the_tokenizers_crops_are_turned_and_none_of_the_generators",
         "images::areas_of_parts_of_pixels_agree_with_a_sum_over_all_of_them")),
    Row("tokens for stage two", "P A", "arg-max of the logits, no Gumbel noise",
        ("dvae::words_are_the_argmax_of_the_logits_in_raster_order",)),
    # one stream of words: the transformer
    Row("sequence", "P", "256 text words of 16,384, lower-cased, then 1,024 image words of 8,192",
        ("paper::the_stream_is_256_text_words_of_16384_then_1024_image_words_of_8192",
         "text::captions_that_are_too_long_are_cut_and_counted")),
    Row("pads", "P", "a learned pad for each of the 256 text positions",
        ("transformer::every_text_position_has_a_pad_of_its_own",
         "paper::positions_are_learned_by_place_in_the_text_and_by_row_and_column_in_the_picture")),
    Row("positions", "P", "learned for text; row + column for the picture; start of text, start of image",
        ("paper::positions_are_learned_by_place_in_the_text_and_by_row_and_column_in_the_picture",)),
    Row("size", "P D", "64 layers, 62 heads × 64, width 3,968: 12,092,178,432 weights",
        ("paper::64_layers_of_62_heads_of_64_are_12_billion_weights", "transformer::the_papers_size_is_12_billion_parameters")),
    Row("masks", "P", "row, column, convolutional 11×11, with wrap-around; all see the text",
        ("masks::the_mask_is_the_one_of_the_papers_figure",
         "masks::an_11_by_11_neighbourhood_in_the_papers_grid_is_half_of_121_and_itself",
         "transformer::a_later_token_never_changes_an_earlier_logit",
         "transformer::a_later_token_never_changes_an_earlier_logit_on_the_fast_path",
         "transformer::attending_line_by_line_is_attending_under_the_whole_mask",
         "transformer::words_are_drawn_from_the_logits_of_the_whole_stream_wherever_some_are_given")),
    Row("layer rule", "P D", "column where (i − 2) mod 4 = 0, else row; the last convolutional",
        ("paper::the_papers_layers_have_the_papers_masks", "masks::the_last_layer_is_convolutional_whatever_its_number",
         "masks::the_papers_64_layers_are_47_rows_16_columns_and_1_convolution")),
    Row("column trick", "P", "image states transposed before column attention: a column is a line",
        ("transformer::a_column_is_a_line_of_its_own_once_the_grid_is_transposed",
         "transformer::the_fast_path_gives_the_logits_and_gradients_of_the_whole_mask")),
    Row("loss", "P", "1/8 text + 7/8 image, each averaged over its own kind",
        ("paper::the_parts_of_the_loss_weigh_an_eighth_and_seven_eighths",
         "transformer::the_loss_is_an_eighth_of_the_text_and_seven_eighths_of_the_image")),
    Row("separation", "P", "text positions predict text words only, image positions image words only",
        ("transformer::text_positions_know_text_words_and_image_positions_image_words_only",)),
    Row("text noise", "P", "BPE-dropout 10 % in training",
        ("paper::a_tenth_of_the_merges_is_left_out_in_training", "text::each_merge_is_left_out_as_often_as_said",
         "text::without_dropout_our_words_are_the_librarys", "text::every_spelling_gives_the_caption_back")),
    Row("augmentation", "P", "generator: square in the middle quarter, side 256…288, crop 256, never turned",
        ("paper::the_generator_sees_the_papers_crops_in_several_views",
         "augmentation::the_generator_sees_squares_of_8_to_9_eighths_of_its_size",
         "augmentation::the_generators_square_begins_in_the_middle_quarter_of_its_room",
         "augmentation::half_of_the_tokenizers_crops_are_turned_and_none_of_the_generators")),
    Row("optimizer", "P", "AdamW .9, .96, 1e-8, decay .045 on matrices only; clip 4; variance ≤ 5",
        ("paper::the_generators_optimizer_is_adamw_with_decay_on_matrices_and_clipped_gradients",
         "optim::only_matrices_and_kernels_decay", "optim::a_gradient_is_scaled_to_the_limit_and_its_norm_before_is_told")),
    Row("schedule", "P", "warm-up over 5,000 updates to 4.5e-4; halved on a plateau",
        ("paper::the_generators_rate_warms_up_for_5000_updates_and_stays",
         "paper::the_generators_rate_halves_on_a_plateau", "training::the_rate_halves_when_the_validation_loss_stays",
         "schedules::a_rate_is_halved_each_time_the_loss_has_not_fallen_for_so_long")),
    Row("EMA", "?", "every 25 updates; decay .99 (a setting)",
        ("paper::the_average_is_taken_every_25_updates_and_its_decay_is_a_setting",
         "training::the_average_is_taken_every_so_many_updates")),
    Row("batch", "P", "1,024", ("paper::a_batch_has_1024_pairs",)),
    Row("precision", "P", "float16, 128 scales: M·2¹³, ×2^(1/1000), ÷√2 and skip, in [M·2⁷, M·2²⁴]; float32 islands",
        ("paper::float16_is_the_papers_precision_with_128_gradient_scales",
         "scaling::every_scale_starts_at_2_to_the_13_times_the_replicas",
         "scaling::a_thousand_good_updates_double_a_scale_and_a_bad_one_divides_it_by_the_root_of_2",
         "scaling::scales_stay_between_2_to_the_7_and_2_to_the_24_times_the_replicas",
         "scaling::an_update_with_an_overflow_is_left_out_and_the_scale_shrinks",
         "scaling::logits_and_embeddings_stay_in_float32_where_matrix_products_do_not")),
    Row("gradient compression", "P", "PowerSGD, rank 896, 86 %; error feedback in the checkpoint",
        ("paper::gradients_are_compressed_at_rank_896_by_about_86_percent",
         "distributed::a_compressed_run_that_stopped_goes_on_as_if_it_had_not_with_its_error_feedback")),
    Row("result", "A", "the loss is in the unit of the paper's 3.6 nats (12 billion weights were not trained here)",
        ("paper::the_loss_is_in_the_unit_of_the_papers_3_6_nats",)),
    Row("?", "?", "activation GELU, init N(0, .02), dropout 0; BPE of the captions, no special tokens (settings)",
        ("paper::what_the_paper_leaves_open_is_a_setting", "transformer::the_activation_is_a_setting",
         "transformer::dropout_is_a_function_of_the_step_and_off_when_not_training")),
    # samples, ranking, evaluation
    Row("sampling", "P", "temperature 1, no truncation; 512 candidates, ranked by CLIP's cosine",
        ("paper::512_candidates_are_drawn_at_temperature_1_without_truncation",
         "drawing::the_default_is_the_papers_512_candidates_at_temperature_1",
         "families::a_score_is_one_cosine_per_picture")),
    Row("best of N", "P", "exact expectation over all subsets, for N = 1, 2, 4, …",
        ("metrics::best_of_equals_the_mean_over_every_subset",
         "metrics::more_candidates_never_hurt_when_the_score_is_the_quality",
         "metrics::a_curve_has_the_powers_of_two_and_the_whole")),
    Row("completion", "P", "the top rows of a picture (or any cells) given, the rest drawn",
        ("completed_samples::its_top_rows_are_in_every_candidate_and_the_rest_is_drawn",
         "families::a_sample_keeps_the_words_it_is_given")),
    Row("evaluation", "P", "30,000 held-out captions; Fréchet distance and Inception Score, after a blur of radius 0…8",
        ("paper::the_evaluation_looks_at_30_000_held_out_pictures", "fidelity::the_distance_is_that_of_a_matrix_square_root",
         "fidelity::an_inception_score_is_the_exponential_of_what_a_picture_tells_of_its_class",
         "fidelity::a_blur_is_a_convolution_with_a_gaussian_of_that_deviation", "likeness::both_sides_are_blurred")),
    Row("overlap", "P", "nearest training neighbours by an embedding, a threshold; figures with and without them",
        ("fidelity::the_nearest_of_many_is_the_planted_copy_however_long_it_is",
         "likeness::what_training_has_a_twin_of_is_counted_and_left_out_of_both_sides")),
    Row("human study", "P", "make sheet, make votes: the majority of five raters, with its interval (no study was held here)",
        ("metrics::a_majority_is_more_than_half_of_the_raters", "sheets::the_majority_is_the_one_of_the_paper",
         "sheets::from_the_sheet_alone_nobody_can_tell_the_runs")),
    Row("data filter", "P", "captions too short, not English or boiler-plate, aspect outside [1/2, 2]: dropped, counted",
        ("paper::pictures_beyond_twice_as_long_as_wide_are_left_out", "paper::captions_are_sifted_as_in_the_paper",
         "captions::a_short_caption_is_refused_with_both_numbers", "captions::alt_text_without_a_description_is_boilerplate",
         "captions::captions_in_another_language_are_left_out",
         "images::shapes_that_the_settings_leave_out_are_refused_on_the_header")),
)  # fmt: skip


class Outcomes:
    """A plugin of pytest: which tests ran, and which of them did not pass."""

    def __init__(self) -> None:
        self.ran: set[str] = set()
        self.failed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.partition("[")[0]
        if report.when == "call" and report.passed:
            self.ran.add(name)
        if not report.passed:
            self.failed.add(name)


def outcomes(nodes: list[str]) -> Outcomes:
    """Runs the tests, quietly."""
    seen = Outcomes()
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:terminalreporter", *nodes], plugins=[seen])
    return seen


def table_of(seen: Outcomes) -> tuple[list[str], int]:
    """The lines of the table, and how many rows are green; of a row that is not, the tests at fault are marked."""
    lines, green = [line("row", "src", "value", "tests"), line(*("-" * width for width in WIDTHS))], 0
    for row in ROWS:
        is_held = [node in seen.ran and node not in seen.failed for node in row.nodes]
        green += all(is_held)
        tests = [name if held else f"NOT GREEN {name}" for name, held in zip(row.tests, is_held, strict=True)]
        values = textwrap.wrap(row.value, WIDTHS[2])
        names, sources = [row.what], [row.source]
        lines += [line(*cells) for cells in itertools.zip_longest(names, sources, values, tests, fillvalue="")]
    return lines, green


def line(*cells: str) -> str:
    return " | ".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()


def main() -> None:
    seen = outcomes(sorted({node for row in ROWS for node in row.nodes}))
    lines, green = table_of(seen)
    print("\n".join(lines))
    print(f"{len(ROWS)} rows, {green} green")
    sys.exit(green < len(ROWS))


if __name__ == "__main__":
    main()
