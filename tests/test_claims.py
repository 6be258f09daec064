"""What README, docs and docstrings promise without exception, each with the tests that hold it.

A sentence that says *never*, *always*, *exactly* or *whatever* and is not listed fails, as does one that was reworded
or lost its test.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# page -> {words of the page: tests}
CLAIMS = {
    "README.md": {
        "trains, prunes and shrinks a classifier of handwritten digits with every strategy": [
            "test_the_demo_prunes_shrinks_and_writes_its_files"
        ],
        "`None` for a leaf that stays dense, here and in every framework": ["test_every_kind_of_pytree"],
    },
    "docs/architecture.md": {
        "every name on those pages is public": ["test_public_names_are_documented_once_and_no_others"],
        "A module imports only from lower floors": ["test_architecture_shows_the_import_contract"],
    },
    "docs/choosing.md": {
        "whatever their frequency": ["test_energy_keeps_more_of_the_kernel_than_any_other_choice"],
        "no other mask of that size changes the kernel less": [
            "test_energy_keeps_more_of_the_kernel_than_any_other_choice"
        ],
        "recomputed in rounds so that no layer is emptied": [
            "test_synflow_in_rounds_saves_a_layer_that_one_round_empties"
        ],
    },
    "docs/combining.md": {
        "**Weight decay** belongs, as always, in the optimizer": [
            "test_masked_trains_only_what_is_kept",
            "test_fifty_updates_keep_zeros_counts_and_what_was_saved",
        ],
        "Pruned weights stay exactly 0": ["test_fifty_updates_keep_zeros_counts_and_what_was_saved"],
        "it makes weights small but never 0": ["test_soft_threshold_solves_the_lasso"],
        "makes them exactly 0": ["test_soft_threshold_pulls_to_zero_until_its_end"],
        "With `within=` every strategy chooses among the weights that they keep": [
            "test_what_was_removed_stays_removed_and_counts",
            "test_every_strategy_takes_it",
        ],
        "what they removed stays removed, and the sparsity is still a fraction of all weights": [
            "test_what_was_removed_stays_removed_and_counts"
        ],
    },
    "docs/deploy.md": {
        "For each of them it times every form on this device": ["test_deploy_computes_the_masked_model"],
        "Both work with every strategy and inside `gradual`": ["test_every_score_budget_and_pattern"],
    },
    "docs/extending.md": {
        "`keep_count` rounds exactly, for numbers and for traced sparsities": [
            "test_a_traced_sparsity_counts_as_exactly_as_a_number"
        ],
        "always as a matrix with inputs first": ["test_a_method_of_a_users_own"],
    },
    "docs/faq.md": {
        "and no biases and no scales or offsets of norms, whatever their rank": [
            "test_biases_are_left_alone_whatever_their_rank"
        ],
        "Counts are exact": ["test_select_is_exact", "test_every_way_in_keeps_the_same_number"],
        "exactly masked, whatever the optimizer proposed, momentum and weight decay included": [
            "test_fifty_updates_keep_zeros_counts_and_what_was_saved"
        ],
        "no number added to NaN gives 0": ["test_a_pruned_weight_is_zero_whatever_it_was"],
        "checkpoint it like any other": ["test_a_pruning_state_is_checkpointed_like_any_other"],
        "lists every leaf that was picked": ["test_a_summary_says_what_was_picked"],
    },
    "docs/getting-started.md": {
        "`apply` sets the pruned weights to exactly zero": ["test_apply_selects_and_never_multiplies"],
        "After each update the parameters are exactly masked": [
            "test_fifty_updates_keep_zeros_counts_and_what_was_saved"
        ],
        "Counts are exact": ["test_select_is_exact"],
        "the sparsity is any optax schedule": ["test_gradual_refreshes_on_time_and_ends_on_its_sparsity"],
    },
    "docs/scale.md": {
        "Only a few numbers are sent between devices, never a parameter": [
            "test_a_strategy_on_a_mesh_selects_as_on_one_device_and_moves_counts_only"
        ],
        "The masks are the same bits as on one device, ties included, for every mesh and sharding": [
            "test_a_strategy_on_a_mesh_selects_as_on_one_device_and_moves_counts_only"
        ],
        "All counts are exact beyond 2^31 weights too": [
            "test_a_traced_sparsity_counts_as_exactly_as_a_number",
            "test_selection_among_more_scores_than_32_bits_count",
        ],
    },
    "docs/selection.md": {
        "keeps exactly the largest tenth of the weights of each leaf, ties to the lowest index": [
            "test_select_is_exact"
        ],
        "nothing is compiled, so the first call is as fast as the second": [
            "test_outside_jit_nothing_is_compiled_at_all"
        ],
        "no sort, no copy of the scores": ["test_selection_never_sorts_the_scores", "test_large_leaves_are_not_copied"],
        "ends when exactly `keep` scores reach `low`": ["test_select_is_exact"],
        "a pass keeps it, whatever the marks are": ["test_host_and_counting_agree_on_any_data"],
        "either exactly `keep` scores reach `low`": ["test_host_and_counting_agree_on_any_data"],
    },
    "docs/export.md": {
        "A small function is an ordinary JAX function, so whatever takes one takes the small model": [
            "test_model_of_the_zoo_at_a_batch_of_any_size",
            "test_traced_at_batch_two_it_runs_at_others_under_every_transformation",
        ],
    },
    "docs/shrink.md": {
        "is a program that never does": ["test_the_code_of_the_model_no_longer_runs"],
        "`small` runs at any batch size and under `jit`, `grad`, `vmap`": [
            "test_traced_at_batch_two_it_runs_at_others_under_every_transformation"
        ],
        "An operation without a rule keeps every axis that it touches whole, and a warning names it": [
            "test_an_unknown_primitive_freezes_what_it_touches_and_a_warning_names_it_and_the_paths"
        ],
        "the state of any optimizer": ["test_a_state_takes_one_more_update"],
        "At least one unit of every group stays": ["test_something_always_stays"],
        "A warning names each group whose mean could not be added anywhere": ["test_a_group_without_a_bias_is_named"],
    },
    "docs/train-shrink-save.md": {
        "the first call raises an error that names the parameter": ["test_a_plan_of_another_model_is_refused"],
    },
    "docs/tutorial-rounds.md": {
        "nothing is removed from the folder but a round that was half-written": [
            "test_only_what_a_run_wrote_is_removed"
        ],
        "Calling it for a finished run trains nothing": ["test_a_killed_run_ends_as_it_would_have"],
    },
    "jaxprune/_selection/exact.py": {
        "Ties go to the lowest flat index. NaN is pruned first. The counts may be traced": [
            "test_select_is_exact",
            "test_counts_may_be_traced_without_compiling_anew",
        ],
    },
    "jaxprune/_masks/masking.py": {
        "the value is selected, never multiplied": ["test_apply_selects_and_never_multiplies"],
    },
    "jaxprune/budgets.py": {
        "exactly `keep_count(all groups, sparsity)` in sum": [
            "test_totals_are_exact_and_traced_or_not_the_same",
            "test_owl_follows_its_formula",
        ],
        "no layer's density passes 0 or 1": ["test_owl_follows_its_formula"],
        "Keeps the fewest groups whose scores add up to a fraction of the total": [
            "test_cumulative_keeps_the_fewest_that_reach_the_fraction"
        ],
    },
    "jaxprune/oneshot/_prune.py": {
        "what these prune is and stays 0, whatever the method": ["test_a_sparse_model_stays_sparse_where_it_was"],
    },
}

# Sentences with such a word that are advice, or about arithmetic or other programs, and nothing that could be tested.
ORDINARY = {
    "docs/combining.md": {"A pruned weight is exactly 0 in eight bits too"},
    "docs/deploy.md": {"2:4 without a shared pattern is never faster on a CPU"},
    "docs/extending.md": {
        "This score keeps the weights that are farthest from their initial values, whatever their size"
    },
    "docs/faq.md": {"`budgets.keep_count` says exactly how the sparsity is read"},
    "docs/other-models.md": {"because a removed leaf then adds exactly nothing"},
    "docs/train-shrink-save.md": {"Always call `small` under `jit`"},
}


TESTS = {
    node.name
    for file in (ROOT / "tests").rglob("*.py")
    for node in ast.walk(ast.parse(file.read_text()))
    if isinstance(node, ast.FunctionDef)
}


def words(text):
    return re.sub(r"\s+", " ", text)


def sentences(page):
    """The sentences of a page, without its code."""
    prose = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    paragraphs = re.split(r"\n\s*\n|\n[-*|#] ", prose)
    return [sentence for paragraph in paragraphs for sentence in re.split(r"(?<=[.:;])\s", words(paragraph))]


@pytest.mark.parametrize("page", CLAIMS)
def test_every_claim_stands_and_has_its_tests(page):
    text = words((ROOT / page).read_text())
    for claim, tests in CLAIMS[page].items():
        assert claim in text, f"{page} no longer says: {claim}"
        assert tests
        assert not set(tests) - TESTS


PAGES = sorted(str(path.relative_to(ROOT)) for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")])


@pytest.mark.parametrize("page", PAGES)
def test_no_claim_without_exception_is_left_out(page):
    listed = [*CLAIMS.get(page, ()), *ORDINARY.get(page, ())]
    for sentence in sentences(page):
        if re.search(r"\b(never|always|exactly|whatever)\b", sentence, re.IGNORECASE):
            assert any(claim in sentence for claim in listed), f"{page} claims without a test: {sentence}"
