"""What a kill, a full disk or a flipped bit does to the artefacts: nothing that one would not be told of.

`COVERED` says for every row of three lists which tests hold it: A is crash and resume (test_kills), B checkpoints, C shards and
other artefacts (test_damage). What stands elsewhere is not tested again there. Tests marked slow are the same ones with many
trials (THOUSANDWORDS_KILLS of them for kills); what they gave is kept in bench/reliability.md.
"""
from __future__ import annotations

from tests.killing import ROOT

COVERED = {  # row -> what it asks for -> the tests that hold it
    "A1": ("fail points, then resume", ["test_kills.test_a_stage_that_died_at_a_fail_point_ends_as_if_it_had_not",
                                        "test_kills.test_every_stage_survives_its_death_at_every_fail_point"]),
    "A2": ("random kill -9 while preparing or tokenising", ["test_kills.test_random_kills_change_nothing"]),
    "A3": ("the same while training", ["test_kills.test_random_kills_change_nothing",
                                       "test_training.test_a_run_that_died_at_any_step_goes_on_from_its_last_checkpoint",
                                       "test_loader.test_every_batch_is_full_and_can_be_had_without_the_others"]),
    "A4": ("the same while sampling", ["test_kills.test_random_kills_change_nothing",
                                       "test_kills.test_every_candidate_of_every_prompt_is_drawn_once"]),
    "A5": ("up to five kills, one after the other", ["test_kills.test_random_kills_change_nothing"]),
    "A6": ("children die, two never write", ["test_kills.test_a_second_writer_of_an_output_is_refused_wherever_it_was_started",
                                             "test_guard.test_a_process_ends_with_the_one_it_hangs_on",
                                             "test_kills.test_no_worker_outlives_torchrun",
                                             "test_kills.test_no_stage_outlives_dvc_and_the_next_repro_goes_on"]),
    "A7": ("a resume that forgets something is another run",
           ["test_training.test_without_the_optimizers_moments_a_resumed_run_is_another"]),
    "A8": ("SIGTERM keeps a checkpoint, code 143", ["test_kills.test_a_training_that_is_asked_to_end_keeps_a_checkpoint"]),
    "A9": ("what the dead leave is in nobody's way", ["test_guard.test_a_lock_that_a_dead_process_left_is_taken",
                                                      "test_kills.test_a_stage_that_died_at_a_fail_point_ends_as_if_it_had_not"]),
    "A10": ("a finished stage is not run again", ["test_pipeline.test_nothing_runs_again_when_nothing_changed",
                                                  "test_training.test_a_finished_run_is_not_trained_again"]),
    "B1": ("a full disk", ["test_kills.test_a_disk_of_two_megabytes_keeps_what_was_on_it",
                           "test_kills.test_a_stage_on_a_full_disk_says_so_and_goes_on_when_there_is_room",
                           "test_checkpoints.test_a_disk_that_is_full_anywhere_in_a_save_leaves_the_checkpoints_as_they_were"]),
    "B2": ("a folder that cannot be written", ["test_files.test_a_folder_that_takes_nothing_is_told_with_the_mend",
                                               "test_files.test_a_folder_that_would_lie_in_a_file_is_refused",
                                               "test_kills.test_an_output_that_cannot_be_written_is_refused_before_any_work"]),
    "B3": ("a flipped bit in a checkpoint", ["test_damage.test_no_flipped_bit_is_read",
                                             "test_checkpoints.test_a_flipped_bit_in_the_newest_is_told_and_the_one_before_is_used"]),
    "B4": ("a checkpoint cut short or with files missing", [
        "test_damage.test_nothing_that_was_cut_short_is_read",
        "test_checkpoints.test_a_newest_with_a_file_cut_short_or_missing_is_passed_over",
        "test_checkpoints.test_where_none_is_whole_the_run_stops_and_does_not_start_again"]),
    "B5": ("two are kept at all times", ["test_checkpoints.test_the_newest_two_are_kept",
                                         "test_checkpoints.test_a_run_that_keeps_fewer_than_two_is_not_possible",
                                         "test_checkpoints.test_a_kill_at_any_moment_of_a_save_leaves_the_old_or_the_new_"
                                         "checkpoint_whole"]),
    "B7": ("of other settings, words or tokenizer", ["test_kills.test_changed_settings_never_take_up_what_others_left",
                                                     "test_shards.test_shards_of_another_tokenizer_are_refused",
                                                     "test_package.test_a_part_that_was_replaced_is_refused"]),
    "B8": ("a loss that is not finite",
           ["test_training.test_a_loss_or_gradient_that_is_not_finite_stops_the_run_before_the_update"]),
    "B9": ("an overflow in float16", ["test_scaling.test_an_update_with_an_overflow_is_left_out_and_the_scale_shrinks",
                                      "test_scaling.test_gradients_that_no_scale_can_hold_stop_the_run",
                                      "test_scaling.test_a_stopped_float16_run_goes_on_with_the_scales_it_had"]),
    "C1": ("a flipped bit in a shard", ["test_damage.test_no_flipped_bit_is_read",
                                        "test_pairs.test_a_flipped_bit_anywhere_is_refused",
                                        "test_shards.test_a_flipped_bit_anywhere_is_refused_and_refused_again"]),
    "C2": ("a flipped bit in a manifest", ["test_damage.test_no_flipped_bit_is_read",
                                           "test_files.test_a_flipped_bit_is_found_in_whichever_byte_it_is"]),
    "C3": ("damage is refused twice", ["test_damage.test_no_flipped_bit_is_read",
                                       "test_files.test_damage_is_found_again_the_second_time"]),
    "C4": ("cut, missing, extra, renamed, doubled, swapped", ["test_damage.test_nothing_that_was_cut_short_is_read",
                                                              "test_damage.test_shards_that_are_not_where_they_were_are_refused",
                                                              "test_damage.test_a_shard_too_many_is_not_read_and_is_told_of"]),
    "C5": ("another schema", ["test_damage.test_pair_shards_of_another_schema_are_refused",
                              "test_shards.test_words_of_another_number_or_type_are_refused",
                              "test_shards.test_a_word_outside_the_vocabulary_is_refused_with_its_row"]),
    "C6": ("shards of several tokenizers", ["test_damage.test_a_shard_of_another_tokenizer_among_the_others_is_refused",
                                            "test_shards.test_shards_of_another_tokenizer_are_refused"]),
    "C7": ("an empty shard, fewer rows than a batch", ["test_damage.test_a_shard_without_rows_is_refused",
                                                       "test_pairs.test_an_empty_split_is_refused_with_the_mend",
                                                       "test_loader.test_every_batch_is_full_and_can_be_had_without_the_others"]),
    "C8": ("counts add up", ["test_damage.test_a_shard_with_other_rows_than_its_manifest_counts_is_refused",
                             "test_pairs.test_shards_hold_the_rows_asked_for_and_the_manifest_counts_them",
                             "test_pairs.test_whatever_the_captions_every_input_is_counted_once"]),
    "C9": ("make verify", ["test_damage.test_verify_finds_a_flipped_bit_in_everything_that_is_made"]),
    "C10": ("what it costs", ["test_damage.test_hashing_is_fast"]),
}  # fmt: skip
NOT_COVERED = {
    "B6": "no checkpoint is written beside the training, so there is none to be caught up with",
    "B10": "the memory of a GPU needs a GPU",
}


def test_every_row_names_tests_that_there_are():
    rows = [f"A{number}" for number in range(1, 11)] + [f"{part}{number}" for part in "BC" for number in range(1, 11)]
    assert sorted(rows) == sorted(COVERED.keys() | NOT_COVERED)
    for _, names in COVERED.values():
        for name in names:
            file, _, test = name.partition(".")
            source = (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8")
            assert f"def {test}(" in source, f"tests/{file}.py has no {test}"
