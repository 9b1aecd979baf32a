"""The reliability plan: kills, full disks and flipped bits never damage an artefact without an error message.

`COVERED` names the tests of every row of three lists: A is crash and resume (test_kills), B checkpoints, C
shards and other artefacts (test_damage). Slow tests are the same with many trials (THOUSANDWORDS_KILLS of
them for kills); their results are in bench/reliability.md.
"""

from __future__ import annotations

from tests.helpers.kill import ROOT

COVERED = {  # row -> (requirement, its tests)
    "A1": (
        "fail points, then resume",
        [
            "reliability/test_kills.test_a_stage_that_died_at_a_fail_point_gives_the_same_result",
            "reliability/test_kills.test_every_stage_survives_its_death_at_every_fail_point",
        ],
    ),
    "A2": (
        "random kill -9 while preparing or tokenizing",
        ["reliability/test_kills.test_random_kills_change_nothing"],
    ),
    "A3": (
        "the same while training",
        [
            "reliability/test_kills.test_random_kills_change_nothing",
            "unit/training/test_loop.test_a_run_that_died_at_any_step_resumes_from_its_last_checkpoint",
            "unit/data/test_loader.test_every_batch_is_full_and_does_not_need_the_others",
        ],
    ),
    "A4": (
        "the same while sampling",
        [
            "reliability/test_kills.test_random_kills_change_nothing",
            "reliability/test_kills.test_every_candidate_of_every_prompt_is_generated_once",
        ],
    ),
    "A5": (
        "up to five kills, one after the other",
        ["reliability/test_kills.test_random_kills_change_nothing"],
    ),
    "A6": (
        "children die, two never write",
        [
            "reliability/test_kills.test_a_second_writer_of_an_output_is_rejected_wherever_it_was_started",
            "pipeline/test_locks.test_a_process_ends_with_its_launcher",
            "reliability/test_kills.test_no_worker_outlives_torchrun",
            "reliability/test_kills.test_no_stage_outlives_dvc_and_the_next_repro_resumes",
        ],
    ),
    "A7": (
        "a resume that loses state gives another result",
        ["unit/training/test_loop.test_without_the_optimizers_moments_a_resumed_run_is_another"],
    ),
    "A8": (
        "SIGTERM saves a checkpoint, code 143",
        ["reliability/test_kills.test_a_training_that_is_stopped_saves_a_checkpoint"],
    ),
    "A9": (
        "what a dead process leaves behind blocks no other",
        [
            "pipeline/test_locks.test_a_lock_that_a_dead_process_left_is_taken",
            "reliability/test_kills.test_a_stage_that_died_at_a_fail_point_gives_the_same_result",
        ],
    ),
    "A10": (
        "a finished stage is not run again",
        [
            "pipeline/test_smoke.test_nothing_runs_again_when_nothing_changed",
            "unit/training/test_loop.test_a_finished_run_is_not_trained_again",
        ],
    ),
    "B1": (
        "a full disk",
        [
            "reliability/test_kills.test_a_full_disk_of_two_megabytes_keeps_its_files",
            "reliability/test_kills.test_a_stage_on_a_full_disk_reports_it_and_resumes_when_there_is_room",
            "unit/training/test_checkpoints.test_a_full_disk_anywhere_in_a_save_leaves_the_checkpoints_unchanged",
        ],
    ),
    "B2": (
        "a folder that cannot be written",
        [
            "unit/core/test_files.test_a_folder_that_cannot_be_written_is_reported_with_the_fix",
            "unit/core/test_files.test_a_folder_inside_a_file_is_rejected",
            "reliability/test_kills.test_an_output_that_cannot_be_written_is_rejected_before_any_work",
        ],
    ),
    "B3": (
        "a flipped bit in a checkpoint",
        [
            "reliability/test_damage.test_no_flipped_bit_is_read",
            "unit/training/test_checkpoints.test_after_a_flipped_bit_in_the_newest_a_warning_names_it_and_the_one_before_is_used",
        ],
    ),
    "B4": (
        "a checkpoint cut short or with files missing",
        [
            "reliability/test_damage.test_nothing_that_was_cut_short_is_read",
            "unit/training/test_checkpoints.test_a_newest_with_a_truncated_or_missing_file_is_skipped",
            "unit/training/test_checkpoints.test_where_none_is_intact_the_run_stops_and_does_not_start_again",
        ],
    ),
    "B5": (
        "two are kept at all times",
        [
            "unit/training/test_checkpoints.test_the_newest_two_are_kept",
            "unit/training/test_checkpoints.test_keeping_fewer_than_two_is_rejected",
            "pipeline/test_checkpoint_processes.test_a_kill_at_any_moment_of_a_save_leaves_the_old_or_the_new_checkpoint_intact",
        ],
    ),
    "B7": (
        "of other settings, text tokenizer or image tokenizer",
        [
            "reliability/test_kills.test_changed_settings_never_resume_from_other_checkpoints",
            "unit/data/test_token_shards.test_shards_of_another_tokenizer_are_rejected",
            "unit/inference/test_package.test_a_part_that_was_replaced_is_rejected",
        ],
    ),
    "B8": (
        "a loss that is not finite",
        [
            "unit/training/test_loop.test_a_loss_or_gradient_that_is_not_finite_stops_the_run_before_the_update"
        ],
    ),
    "B9": (
        "an overflow in float16",
        [
            "unit/nn/test_grad_scaling.test_an_update_with_an_overflow_is_skipped_and_the_scale_shrinks",
            "unit/nn/test_grad_scaling.test_gradients_that_overflow_at_every_scale_stop_the_run",
            "unit/nn/test_grad_scaling.test_a_resumed_float16_run_continues_with_its_scales",
        ],
    ),
    "C1": (
        "a flipped bit in a shard",
        [
            "reliability/test_damage.test_no_flipped_bit_is_read",
            "unit/data/test_pair_shards.test_a_flipped_bit_anywhere_is_rejected",
            "unit/data/test_token_shards.test_a_flipped_bit_anywhere_is_rejected_and_rejected_again",
        ],
    ),
    "C2": (
        "a flipped bit in a manifest",
        [
            "reliability/test_damage.test_no_flipped_bit_is_read",
            "unit/core/test_files.test_a_flipped_bit_in_any_byte_is_detected",
        ],
    ),
    "C3": (
        "damage is rejected twice",
        [
            "reliability/test_damage.test_no_flipped_bit_is_read",
            "unit/core/test_files.test_damage_is_detected_every_time",
        ],
    ),
    "C4": (
        "cut, missing, extra, renamed, doubled, swapped",
        [
            "reliability/test_damage.test_nothing_that_was_cut_short_is_read",
            "reliability/test_damage.test_shards_that_were_moved_are_rejected",
            "reliability/test_damage.test_an_extra_shard_is_not_read_and_is_reported",
        ],
    ),
    "C5": (
        "another schema",
        [
            "reliability/test_damage.test_pair_shards_of_another_schema_are_rejected",
            "unit/data/test_token_shards.test_tokens_of_another_number_or_type_are_rejected",
            "unit/data/test_token_shards.test_a_token_outside_the_vocabulary_is_rejected_with_its_row",
        ],
    ),
    "C6": (
        "shards of several tokenizers",
        [
            "reliability/test_damage.test_a_shard_of_another_tokenizer_among_the_others_is_rejected",
            "unit/data/test_token_shards.test_shards_of_another_tokenizer_are_rejected",
        ],
    ),
    "C7": (
        "an empty shard, fewer rows than a batch",
        [
            "reliability/test_damage.test_a_shard_without_rows_is_rejected",
            "pipeline/test_ingest.test_an_empty_split_is_rejected_with_the_fix",
            "unit/data/test_loader.test_every_batch_is_full_and_does_not_need_the_others",
        ],
    ),
    "C8": (
        "counts add up",
        [
            "reliability/test_damage.test_a_shard_with_other_rows_than_its_manifest_counts_is_rejected",
            "unit/data/test_pair_shards.test_shards_have_rows_per_shard_and_the_manifest_counts_them",
            "pipeline/test_ingest.test_for_any_captions_every_input_is_counted_once",
        ],
    ),
    "C9": ("make verify", ["reliability/test_damage.test_verify_finds_a_flipped_bit_in_every_artefact"]),
    "C10": ("what it costs", ["reliability/test_damage.test_hashing_is_fast"]),
}
NOT_COVERED = {
    "B6": "checkpoints are written by the training itself, so there is no separate writer to wait for",
    "B10": "GPU memory needs a GPU",
}


def test_every_row_names_existing_tests():
    rows = [f"A{number}" for number in range(1, 11)] + [
        f"{part}{number}" for part in "BC" for number in range(1, 11)
    ]
    assert sorted(rows) == sorted(COVERED.keys() | NOT_COVERED)
    for _, names in COVERED.values():
        for name in names:
            file, _, test = name.partition(".")
            source = (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8")
            assert f"def {test}(" in source, f"tests/{file}.py has no {test}"
