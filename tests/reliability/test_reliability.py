"""The tests of every row of the reliability plan, so that none loses its last one.

A is crash and resume, B checkpoints, C shards and other artefacts, D hostile or unusual inputs. Slow tests are
the same with many trials (THOUSANDWORDS_KILLS of them for kills); results: bench/reliability.md. Without a
test: B6 (checkpoints are written by the training itself, so there is no separate writer to wait for), B10 (GPU
memory needs a GPU). One outcome of D differs from the plan: an image that needs too much memory is
`out_of_memory`, not `worker_died`, because its process survives and reports it.
"""

from __future__ import annotations

import re

from tests.helpers.paths import ROOT

COVERED = """
A1   test_a_stage_that_died_at_a_fail_point_gives_the_same_result
     test_every_stage_survives_its_death_at_every_fail_point
A2   test_random_kills_change_nothing
A3   test_random_kills_change_nothing
     test_a_run_that_died_at_any_step_resumes_from_its_last_checkpoint
A4   test_random_kills_change_nothing
     test_every_candidate_of_every_prompt_is_generated_once
A5   test_random_kills_change_nothing
A6   test_a_second_writer_of_an_output_is_rejected_wherever_it_was_started
     test_a_process_ends_with_its_launcher
A7   test_without_the_optimizers_moments_a_resumed_run_is_another
A8   test_a_training_that_is_stopped_saves_a_checkpoint
A9   test_a_lock_that_a_dead_process_left_is_taken_whatever_it_says
     test_a_stage_that_died_at_a_fail_point_gives_the_same_result
A10  test_nothing_runs_again_when_nothing_changed
     test_a_finished_run_is_not_trained_again
B1   test_a_full_disk_of_two_megabytes_keeps_its_files
     test_a_stage_on_a_full_disk_reports_it_and_resumes_when_there_is_room
B2   test_a_folder_that_cannot_be_written_is_reported_with_the_fix
     test_a_folder_inside_a_file_is_rejected
B3   test_no_flipped_bit_is_read
     test_after_damage_to_the_newest_a_warning_names_it_and_the_one_before_is_used
B4   test_nothing_that_was_cut_short_is_read
     test_after_damage_to_the_newest_a_warning_names_it_and_the_one_before_is_used
B5   test_the_newest_two_are_kept
     test_the_new_name_is_on_the_disk_before_the_oldest_checkpoint_goes
B7   test_changed_settings_never_resume_from_other_checkpoints
     test_shards_of_another_tokenizer_are_rejected
B8   test_a_loss_or_gradient_that_is_not_finite_stops_the_run_before_the_update
B9   test_an_update_with_an_overflow_is_skipped_and_the_scale_shrinks
     test_gradients_that_overflow_at_every_scale_stop_the_run
C1   test_no_flipped_bit_is_read
C2   test_no_flipped_bit_is_read
     test_a_flipped_bit_in_any_byte_is_detected
C3   test_no_flipped_bit_is_read
C4   test_nothing_that_was_cut_short_is_read
     test_shards_that_were_moved_are_rejected
C5   test_pair_shards_of_another_schema_are_rejected
     test_tokens_of_another_number_or_type_are_rejected
C6   test_a_shard_of_another_tokenizer_among_the_others_is_rejected
     test_shards_of_another_tokenizer_are_rejected
C7   test_a_shard_without_rows_or_with_other_rows_than_counted_is_rejected
     test_an_empty_split_is_rejected_with_the_fix
C8   test_a_shard_without_rows_or_with_other_rows_than_counted_is_rejected
     test_shards_have_rows_per_shard_and_the_manifest_counts_them
C9   test_verify_finds_a_flipped_bit_in_every_artefact
C10  test_hashing_is_fast
D0   test_every_bad_image_is_one_row_of_the_quarantine_and_affects_no_other
     test_outcomes_are_counted_for_each_file_of_many_pairs
D1   test_every_bad_image_is_one_row_of_the_quarantine_and_affects_no_other
     test_an_image_truncated_anywhere_is_rejected_or_complete
D2   test_every_bad_image_is_one_row_of_the_quarantine_and_affects_no_other
     test_bytes_that_are_not_a_supported_image_are_rejected_with_a_reason
D3   test_every_bad_image_is_one_row_of_the_quarantine_and_affects_no_other
     test_a_flipped_bit_anywhere_in_the_pixels_of_a_png_is_noticed
D4   test_a_png_without_its_end_chunk_is_accepted
D5   test_flipped_bytes_in_the_pixels_of_a_jpeg_are_not_noticed
     test_an_image_with_another_sha256_than_its_source_says_is_rejected
D6   test_formats_and_flags_are_counted_by_content
D7   test_both_codings_of_cmyk_in_a_jpeg_give_the_colors_of_the_reference
     test_unusual_valid_files_have_the_right_colors
D8   test_grays_of_more_than_8_bits_are_scaled_by_their_range
     test_float_images_in_an_unknown_range_are_rejected
D9   test_transparent_pixels_take_the_background_color
     test_half_transparent_pixels_are_mixed_with_the_background
D10  test_images_without_color_become_gray
D11  test_an_animation_is_flagged_and_gives_its_first_frame
     test_formats_and_flags_are_counted_by_content
D12  test_exif_orientation_is_applied
     test_broken_exif_is_ignored
D13  test_a_bad_color_profile_changes_nothing
     test_a_profile_is_bad_if_its_length_signature_or_tags_are
D14  test_a_decompression_bomb_is_rejected_from_its_header
     test_an_image_of_the_maximum_size_fits_into_the_limits
D15  test_every_bad_image_is_one_row_of_the_quarantine_and_affects_no_other
D16  test_every_bad_image_is_one_row_of_the_quarantine_and_affects_no_other
D17  test_a_text_bomb_is_rejected
     test_any_error_of_a_decoder_is_a_rejection
D18  test_shapes_excluded_by_settings_are_rejected_from_the_header
D19  test_bytes_that_are_not_a_supported_image_are_rejected_with_a_reason
     test_no_decoder_of_another_format_is_called
D20  test_only_the_pixels_of_an_image_with_an_archive_after_it_are_used
D21  test_every_hostile_file_is_decoded_or_rejected_with_the_right_reason
     test_any_number_of_workers_writes_the_same_bytes
D22  test_a_decoder_that_dies_loses_only_its_own_image
     test_an_input_that_kills_its_worker_is_a_fault_and_its_neighbors_are_not
D23  test_files_that_are_not_regular_are_rejected_at_once_in_every_source
D24  test_anything_but_a_regular_file_in_the_folder_is_rejected_unread
     test_a_file_without_read_permission_is_an_io_error
D25  test_a_file_that_changes_while_it_is_read_is_an_io_error
     test_an_image_that_vanishes_is_counted
D26  test_names_of_every_kind_have_different_keys
     test_a_key_gives_back_the_name
D27  test_captions_are_utf8_lines_or_rejected
D28  test_captions_are_utf8_lines_or_rejected
     test_an_image_or_text_without_the_other_is_reported
D29  test_no_caption_takes_long
     test_caption_files_that_are_too_long_are_rejected_in_tars_too
D30  test_captions_are_utf8_lines_or_rejected
     test_any_text_decodes_to_its_normalized_form
D31  test_a_repeated_sample_is_a_duplicate_and_a_different_one_is_rejected
     test_the_first_of_equal_names_is_used_for_any_number_of_workers
D32  test_bad_rows_are_rejected_one_by_one
     test_broken_lines_are_rejected_one_by_one
D33  test_bad_members_are_rejected_and_do_not_affect_their_neighbors
     test_a_sparse_member_is_rejected
D34  test_a_tar_truncated_anywhere_is_never_read_as_a_shorter_one
     test_a_flipped_bit_in_any_tar_header_is_noticed
D35  test_archives_are_never_unpacked
     test_a_compressed_tar_is_rejected_by_name
D36  test_only_bad_inputs_is_always_an_error
     test_too_many_bad_inputs_stop_with_the_histogram
D37  test_damaged_images_are_rejected_or_decoded_and_counted
     test_thousands_of_damaged_images_are_rejected_or_decoded_and_counted
"""


def test_every_row_names_existing_tests():
    rows = re.findall(r"^[A-D]\d+", COVERED, re.MULTILINE)
    last = {"A": range(1, 11), "B": (1, 2, 3, 4, 5, 7, 8, 9), "C": range(1, 11), "D": range(38)}
    assert rows == [f"{part}{number}" for part, numbers in last.items() for number in numbers]
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert set(re.findall(r"test_\w+", COVERED)) <= defined
