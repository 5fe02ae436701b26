"""The checker finds every violation that is injected, and nothing where there is none."""

from dataclasses import replace

from ml_workbench_service.contracts.resilience import Verdict
from ml_workbench_service.resilience.checker import accounts, check
from ml_workbench_service.resilience.history import DeadLetter, Entry
from tests.resilience.evidence import GROUP, NUM_RECORDS, Made, flawless, swapped


def violated(made: Made) -> dict[str, Verdict]:
    return {verdict.invariant: verdict for verdict in check(made.evidence()) if not verdict.holds}


def test_a_flawless_run_has_no_violation_and_was_looked_at() -> None:
    verdicts = {verdict.invariant: verdict for verdict in check(flawless().evidence())}
    assert [name for name, verdict in verdicts.items() if not verdict.holds] == []
    looked_at = {name: verdict.num_checked for name, verdict in verdicts.items()}
    assert looked_at["nothing_lost"] == 3 * NUM_RECORDS
    assert looked_at["order"] == looked_at["applied_once"] == 2 * NUM_RECORDS
    assert looked_at["state_exact"] == NUM_RECORDS + 2


def test_an_acknowledged_record_that_the_server_never_had_is_lost() -> None:
    made = flawless()
    made.producer = replace(made.producer, acked=(*made.producer.acked, 99), offered_up_to=NUM_RECORDS)
    assert "record-99" in violated(made)["nothing_lost"].counter_examples[0]


def test_an_entry_that_was_acknowledged_without_being_applied_is_lost() -> None:
    made = flawless()
    del made.server.decided[7]
    found = violated(made)
    assert "record-7 (1007-0) was never applied" in found["nothing_lost"].counter_examples[0]
    assert "state_exact" in found
    assert accounts(made.evidence())[0].missing == 1


def test_an_entry_that_the_stream_forgot_is_lost() -> None:
    made = flawless()
    made.lose(7, None)
    assert "still open" in violated(made)["nothing_lost"].counter_examples[0]


def test_an_entry_that_is_counted_as_dropped_is_not_lost() -> None:
    made = flawless()
    made.lose(7, "dropped_oldest")
    assert violated(made) == {}
    account = accounts(made.evidence())[0]
    assert (account.applied, account.dropped_oldest, account.missing) == (NUM_RECORDS - 1, 1, 0)


def test_an_entry_that_was_wiped_by_the_operator_is_not_lost() -> None:
    made = flawless()
    made.lose(7, "flushed")
    made.group.members.clear()
    made.accounting = made.accounting.model_copy(update={"enqueued": 0, "acked": 0})
    assert violated(made) == {}


def test_an_entry_that_is_not_as_it_was_offered_is_found() -> None:
    made = flawless()
    made.server.entries[3] = replace(made.server.entries[3], is_as_offered=False)
    assert set(violated(made)) == {"nothing_lost"}


def test_a_second_decision_on_one_record_is_found() -> None:
    made = flawless()
    made.server.decided.append(made.server.decided[4])
    assert "record-4 caused 2 decisions" in violated(made)["applied_once"].counter_examples[0]


def test_a_record_that_entered_the_stream_twice_is_found() -> None:
    made = flawless()
    made.server.entries.append(Entry(GROUP[0], "1900-0", "record-4"))
    made.group.outcomes[NUM_RECORDS] = "acked"
    found = violated(made)
    assert "record-4 entered the stream 2 times" in found["applied_once"].counter_examples[0]
    assert "order" in found


def test_one_symbol_out_of_order_in_the_stream_is_found() -> None:
    made = flawless()
    swapped(made, 10, 12)
    assert "record-10 of EUR/USD comes after record-12" in violated(made)["order"].counter_examples[0]


def test_decisions_out_of_order_are_found() -> None:
    made = flawless()
    decided = made.server.decided
    decided[10], decided[12] = decided[12], decided[10]
    found = violated(made)
    assert "the decisions of agent0" in found["order"].counter_examples[0]
    assert "state_exact" in found


def test_two_symbols_may_overtake_each_other() -> None:
    made = flawless()
    swapped(made, 10, 11)
    assert "order" not in violated(made)


def test_books_that_do_not_balance_at_any_moment_are_found() -> None:
    made = flawless()
    made.accounting = made.accounting.model_copy(update={"balance": -1})
    assert violated(made)["books_balance"].num_violations == 2


def test_a_counter_that_balances_and_is_wrong_is_found() -> None:
    made = flawless()
    made.accounting = made.accounting.model_copy(update={"acked": NUM_RECORDS - 1, "expired": 1})
    assert violated(made)["books_balance"].num_violations == 2


def test_a_step_whose_counters_do_not_fit_its_entries_is_found() -> None:
    made = flawless()
    made.group.faults.append("one step ended 2 entries and counted 1")
    assert set(violated(made)) == {"books_balance"}


def test_books_that_are_missing_at_the_end_are_found() -> None:
    made = flawless()
    evidence = replace(made.evidence(), last=None)
    assert {each.invariant for each in check(evidence) if not each.holds} == {"books_balance", "pending_empty"}


def test_what_is_left_in_the_stream_or_pending_is_found() -> None:
    made = flawless()
    made.length = 2
    made.accounting = made.accounting.model_copy(update={"pending": 1, "undelivered": 1})
    assert violated(made)["pending_empty"].num_violations == 2


def test_a_dead_letter_that_is_no_poison_is_found() -> None:
    made = flawless()
    made.lose(7, "dead_lettered")
    made.server.dead_letters.append(DeadLetter(GROUP, "record-7", "because"))
    assert "no poison" in violated(made)["dead_letters"].counter_examples[0]


def poisoned() -> Made:
    made = flawless()
    made.server.entries.append(Entry(GROUP[0], "1900-0", "poison-1"))
    made.group.members.add(NUM_RECORDS)
    made.group.outcomes[NUM_RECORDS] = "acked"
    made.poison.add("poison-1")
    made.accounting = made.accounting.model_copy(update={"enqueued": NUM_RECORDS + 1, "acked": NUM_RECORDS + 1})
    return made


def test_poison_that_is_dead_with_a_reason_is_as_it_should_be() -> None:
    made = poisoned()
    made.lose(NUM_RECORDS, "dead_lettered")
    made.server.dead_letters.append(DeadLetter(GROUP, "poison-1", "unreadable"))
    assert violated(made) == {}


def test_poison_without_a_dead_letter_is_found() -> None:
    made = poisoned()
    made.lose(NUM_RECORDS, "dead_lettered")
    assert "poison-1: 0 dead letters" in violated(made)["dead_letters"].counter_examples[0]


def test_poison_with_two_dead_letters_or_without_a_reason_is_found() -> None:
    made = poisoned()
    made.lose(NUM_RECORDS, "dead_lettered")
    made.server.dead_letters += [DeadLetter(GROUP, "poison-1", "unreadable"), DeadLetter(GROUP, "poison-1", " ")]
    assert violated(made)["dead_letters"].num_violations == 2


def test_poison_that_was_acknowledged_is_lost() -> None:
    made = flawless()
    made.server.entries.append(Entry(GROUP[0], "1900-0", "poison-1"))
    made.group.members.add(NUM_RECORDS)
    made.group.outcomes[NUM_RECORDS] = "acked"
    made.poison.add("poison-1")
    assert {"nothing_lost", "dead_letters"} <= set(violated(made))


def test_a_record_that_the_outbox_lost_without_counting_it_is_found() -> None:
    made = flawless()
    made.producer = replace(made.producer, acked=made.producer.acked[1:])
    assert set(violated(made)) == {"outbox"}
    made.producer = replace(made.producer, outbox_dropped=1)
    assert violated(made) == {}
    made.producer = replace(made.producer, outbox_dropped=0, refused=(0,))
    assert violated(made) == {}


def test_a_killed_producer_may_leave_records_open() -> None:
    made = flawless()
    made.producer = replace(made.producer, acked=made.producer.acked[1:], ended=False)
    assert violated(made) == {}


def test_a_record_acknowledged_twice_is_found() -> None:
    made = flawless()
    made.producer = replace(made.producer, acked=(*made.producer.acked, 3))
    assert set(violated(made)) == {"outbox"}


def test_a_checkpoint_that_learnt_something_else_is_found() -> None:
    made = flawless()
    values = [[value + 1e-15 for value in row] for row in made.ended.values_SA]
    made.ended = made.ended.model_copy(update={"values_SA": values})
    assert "differs in values_SA" in violated(made)["state_exact"].counter_examples[0]


def test_a_checkpoint_without_the_last_entry_is_found() -> None:
    made = flawless()
    made.lose(NUM_RECORDS - 1, "dropped_oldest")
    decided = flawless().server.decided
    made.server.decided.append(decided[-1])  # decided before it was evicted, and never learnt
    found = violated(made)
    assert set(found) == {"applied_once", "state_exact"}
    assert "was applied by" in found["applied_once"].counter_examples[0]


def test_a_decision_that_does_not_follow_from_the_state_is_found() -> None:
    made = flawless()
    wrong = made.server.decided[5]
    decision = wrong.decision.model_copy(update={"cumulative_reward": 1.0})
    made.server.decided[5] = replace(wrong, decision=decision)
    assert "decided record-5" in violated(made)["state_exact"].counter_examples[0]


def test_who_wrote_a_checkpoint_and_when_is_no_part_of_what_was_learnt() -> None:
    made = flawless()
    made.ended = made.ended.model_copy(update={"term": 9, "stream_epoch": "other", "saved_at": None})
    assert violated(made) == {}
