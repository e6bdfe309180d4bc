"""The planner against a brute-force oracle on random small worlds, and the rules one by one."""

from __future__ import annotations

import copy
import itertools
from fractions import Fraction
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from clavier.runs.placing import NodeRoom, fits, minus, place, plus, total
from clavier.runs.planner import Candidate, Group, Holder, Plan, Share, find_victims, plan

T1, T2, T3 = (UUID(int=number) for number in (1, 2, 3))
U1, U2 = UUID(int=11), UUID(int=12)


def node(name, free, capacity=None, **rest):
    return NodeRoom(UUID(int=1000 + ord(name)), name, free, capacity or free, **rest)


def run(number, tenant=T1, wants=(1, 1, 0), containers=1, user=U1, **rest):
    return Candidate(UUID(int=100 + number), "g", tenant, user, (wants,) * containers, since=float(number), **rest)


def numbers(made: Plan):
    return [admission.run.int - 100 for admission in made.admissions]


def test_urgent_then_nominal_then_the_smallest_dominant_share_then_priority_age_and_id():
    group = Group(
        "g", [node("a", (100, 100, 10))], shares={T1: Share((2, 100, 0))}, used={T2: (30, 0, 0), T3: (0, 0, 1)}
    )
    waiting = [
        run(1, T2, priority=9), run(2, T3), run(3, T1, (3, 1, 0)), run(4, T1, (2, 1, 0)), run(5, T2, is_urgent=True),
        run(6, T3, priority=1),
    ]  # fmt: skip
    # 3 exceeds its tenant's nominal share as soon as 4 has started; T3 holds 10 % (of the GPUs), T2 30 % of the cores.
    assert numbers(plan(waiting, [group], {})) == [5, 4, 3, 6, 2, 1]


def test_a_tenant_that_may_not_borrow_gets_its_share_and_no_more():
    group = Group("g", [node("a", (10, 10, 0))], shares={T1: Share((2, 10, 0), may_borrow=False)})
    assert numbers(plan([run(number) for number in range(4)], [group], {})) == [0, 1]


def test_the_caps_of_tenant_and_user_hold_across_groups():
    groups = [Group("g", [node("a", (9, 9, 0))]), Group("h", [node("b", (9, 9, 0))])]
    waiting = [run(1), run(2, user=U2), run(3, user=U2), run(4, T2, user=UUID(int=13))]
    made = plan(waiting, groups, {T1: (2, 99, 99, 0), U2: (1, 99, 99, 0)})
    assert numbers(made) == [1, 4, 2]


def test_one_container_goes_where_the_least_is_left_and_keeps_away_from_gpus():
    nodes = [node("a", (8, 8, 2)), node("b", (4, 8, 0)), node("c", (8, 8, 0))]
    assert [found.name for found in place(((2, 2, 0),), nodes)] == ["b"]
    assert [found.name for found in place(((2, 2, 1),), nodes)] == ["a"]


def test_a_gang_is_placed_on_few_nodes_of_one_reach_or_not_at_all():
    nodes = [node("a", (2, 9, 0), reach="x"), node("b", (4, 9, 0), reach="y"), node("c", (1, 9, 0), reach="y")]
    assert [found.name for found in place(((1, 1, 0),) * 4, nodes)] == ["b"] * 4
    assert [found.name for found in place(((1, 1, 0),) * 5, nodes)] == ["b"] * 4 + ["c"]
    assert place(((1, 1, 0),) * 6, nodes) is None


def test_a_gang_with_a_large_master_finds_the_only_way_to_fit():
    nodes = [node("a", (4, 9, 0)), node("b", (3, 9, 0))]
    found = place(((3, 1, 0), (2, 1, 0), (2, 1, 0)), nodes)
    assert [one.name for one in found] == ["b", "a", "a"]


def test_the_head_of_the_line_keeps_its_nearest_node_free_and_the_rest_is_filled():
    waiting = [run(1, wants=(4, 4, 0), may_reserve=True), run(2), run(3), run(4)]
    nodes = [node("a", (3, 4, 0), (4, 4, 0)), node("b", (1, 4, 0), (4, 4, 0))]
    made = plan(waiting, [Group("g", nodes)], {})
    assert numbers(made) == [2]
    assert [held.int - 1000 for held in made.held] == [ord("a")]
    young = [run(1, wants=(4, 4, 0)), run(2), run(3), run(4)]
    nodes = [node("a", (3, 4, 0), (4, 4, 0)), node("b", (1, 4, 0), (4, 4, 0))]
    assert numbers(plan(young, [Group("g", nodes)], {})) == [2, 3, 4]


def borrowed_world(**victim):
    holder = Holder(UUID(int=500), T2, ((UUID(int=1000 + ord("a")), (4, 4, 0)),), **victim)
    return Group(
        "g", [node("a", (0, 0, 0), (4, 4, 0))], shares={T1: Share((4, 4, 0))}, used={T2: (4, 4, 0)}, holders=[holder]
    )


def test_what_was_borrowed_is_wanted_back_once_and_kept_for_who_wants_it():
    made = plan([run(1, wants=(2, 2, 0))], [borrowed_world()], {})
    assert [(one.run.int, one.claimant.int) for one in made.preemptions] == [(500, 101)]
    assert list(made.held.values()) == [UUID(int=101)]
    leaving = borrowed_world()
    leaving.holders, leaving.leaving = [], {T2: (4, 4, 0)}
    leaving.nodes[0].leaving = (4, 4, 0)
    again = plan([run(1, wants=(2, 2, 0)), run(2, T3)], [leaving], {})
    assert (again.preemptions, again.admissions) == ([], [])
    assert list(again.held.values()) == [UUID(int=101)]


def test_nobody_is_stopped_for_who_borrows_himself_or_for_nothing():
    assert plan([run(1, T3, wants=(2, 2, 0))], [borrowed_world()], {}).preemptions == []
    assert plan([run(1, wants=(5, 1, 0))], [borrowed_world()], {}).preemptions == [], "even an empty node is too small"
    within = borrowed_world()
    within.shares[T2] = Share((4, 4, 0))
    assert plan([run(1, wants=(2, 2, 0))], [within], {}).preemptions == []


# --- the oracle -----------------------------------------------------------------------------------------------------

amounts = st.tuples(st.integers(0, 4), st.integers(1, 4), st.integers(0, 2))
some_nodes = st.lists(st.tuples(amounts, amounts, st.sampled_from(["x", "y"])), min_size=1, max_size=3)
some_runs = st.lists(
    st.builds(
        lambda tenant, user, containers, urgent, priority, age, old: (
            tenant, user, tuple(containers), urgent, priority, age, old
        ),
        st.sampled_from([T1, T2, T3]),
        st.sampled_from([U1, U2]),
        st.lists(amounts, min_size=1, max_size=3),
        st.booleans(),
        st.integers(0, 1),
        st.integers(0, 3),
        st.booleans(),
    ),
    max_size=7,
)  # fmt: skip
some_shares = st.dictionaries(st.sampled_from([T1, T2]), st.builds(Share, amounts, st.booleans()))
some_allowances = st.dictionaries(
    st.sampled_from([T1, T2, U1]), st.tuples(st.integers(0, 3), st.integers(0, 6), st.integers(0, 6), st.integers(0, 2))
)
some_holders = st.lists(
    st.tuples(st.sampled_from([T2, T3]), st.lists(st.tuples(st.integers(0, 2), amounts), min_size=1, max_size=2)),
    max_size=3,
)


def world(nodes, runs, shares, holders):
    rooms = [
        NodeRoom(UUID(int=1000 + index), f"n{index}", free, plus(free, more), reach)
        for index, (free, more, reach) in enumerate(nodes)
    ]
    held, used = [], {}
    for index, (tenant, places) in enumerate(holders):
        parts = tuple((UUID(int=1000 + at), wanted) for at, wanted in places if at < len(rooms))
        if not parts:
            continue
        for at, wanted in parts:
            rooms[at.int - 1000].capacity = plus(rooms[at.int - 1000].capacity, wanted)
        held.append(Holder(UUID(int=500 + index), tenant, parts, started=float(index)))
        used[tenant] = plus(used.get(tenant, (0, 0, 0)), held[-1].total)
    candidates = [
        Candidate(UUID(int=100 + index), "g", tenant, user, containers, urgent, priority, float(age), old)
        for index, (tenant, user, containers, urgent, priority, age, old) in enumerate(runs)
    ]
    return candidates, Group("g", rooms, dict(shares), used, holders=held)


def every_placement(containers, nodes):
    """All of them, by brute force."""
    for choice in itertools.product(nodes, repeat=len(containers)):
        if len({one.reach for one in choice}) > 1:
            continue
        left = {one.id: one.free for one in nodes}
        for one, wanted in zip(choice, containers, strict=True):
            left[one.id] = minus(left[one.id], wanted)
        if all(min(room) >= 0 for room in left.values()):
            yield choice


def oracle_order(candidate, group):
    used = group.used.get(candidate.tenant, (0, 0, 0))
    share = group.shares.get(candidate.tenant)
    within = share is not None and fits(plus(used, candidate.total), share.nominal)
    parts = [Fraction(part, whole) for part, whole in zip(used, group.capacity, strict=True) if whole]
    dominant = Fraction(0) if within else max(parts, default=Fraction(0))
    return (
        not candidate.is_urgent, not within, dominant, -candidate.priority, candidate.since, candidate.id.int,
    )  # fmt: skip


def check_against_the_oracle(candidates, group, allowances, made):
    """Walk through the plan: at each step the first of all that could start, found by brute force, is the planned."""
    allowed = {owner: list(left) for owner, left in allowances.items()}
    planned = list(made.admissions)
    rooms = {one.id: one for one in group.nodes}
    claimed = {preemption.claimant for preemption in made.preemptions} | set(made.held.values())
    held_for: dict[UUID, UUID] = {}
    waiting = list(candidates)
    while waiting:
        candidate = min(waiting, key=lambda one: oracle_order(one, group))
        waiting.remove(candidate)
        used, share = group.used.get(candidate.tenant, (0, 0, 0)), group.shares.get(candidate.tenant)
        within = share is not None and fits(plus(used, candidate.total), share.nominal)
        if share is not None and not share.may_borrow and not within:
            continue
        wanted = (1, *candidate.total)
        owners = [allowed[owner] for owner in (candidate.tenant, candidate.user) if owner in allowed]
        if any(amount > left for owner in owners for amount, left in zip(wanted, owner, strict=True)):
            continue
        open_rooms = [one for one in group.nodes if one.id not in held_for]
        possible = next(every_placement(candidate.containers, open_rooms), None)
        if possible is None:
            if candidate.id in claimed:
                held_for |= {at: run_id for at, run_id in made.held.items() if run_id == candidate.id}
            continue
        assert planned, f"{candidate} could start and was passed over"
        admission = planned.pop(0)
        assert admission.run == candidate.id
        assert len({rooms[at].reach for at in admission.nodes}) == 1
        for at, wants in zip(admission.nodes, candidate.containers, strict=True):
            assert at not in held_for
            rooms[at].free = minus(rooms[at].free, wants)
            assert min(rooms[at].free) >= 0
        group.used[candidate.tenant] = plus(used, candidate.total)
        for owner in owners:
            owner[:] = [left - amount for left, amount in zip(owner, wanted, strict=True)]
    assert planned == [], "more was admitted than could start"


@settings(max_examples=200, deadline=None)
@given(some_nodes, some_runs, some_shares, some_allowances, some_holders)
def test_admissions_equal_those_of_a_brute_force_oracle(nodes, runs, shares, allowances, holders):
    candidates, group = world(nodes, runs, shares, holders)
    made = plan(candidates, [copy.deepcopy(group)], dict(allowances))
    assert made == plan(reversed(candidates), [copy.deepcopy(group)], dict(allowances)), (
        "the order of reading is nothing"
    )
    check_against_the_oracle(candidates, group, allowances, made)


@settings(max_examples=200, deadline=None)
@given(some_nodes, some_runs.filter(bool), some_shares, some_holders)
def test_a_preemption_takes_only_what_is_borrowed_makes_room_and_takes_no_run_too_many(nodes, runs, shares, holders):
    candidates, group = world(nodes, runs, shares, holders)
    candidate = candidates[0]

    def has_room(victims):
        rooms = copy.deepcopy(group.nodes)
        for at, wanted in (part for victim in victims for part in victim.places):
            rooms[at.int - 1000].free = plus(rooms[at.int - 1000].free, wanted)
        return any(True for _ in every_placement(candidate.containers, rooms))

    if has_room([]):
        return
    borrowed = [
        one
        for one in group.holders
        if one.tenant != candidate.tenant
        and not fits(
            group.used[one.tenant], group.shares[one.tenant].nominal if one.tenant in group.shares else (0,) * 3
        )
    ]
    victims = find_victims(candidate, copy.deepcopy(group))
    if victims is None:
        assert not any(has_room([one]) for one in borrowed)
        return
    assert {one.id for one in victims} <= {one.id for one in borrowed}
    assert has_room(victims)
    assert all(not has_room([one for one in victims if one is not other]) for other in victims)
    for tenant in {one.tenant for one in victims}:
        taken = sorted((one for one in victims if one.tenant == tenant), key=lambda one: -one.started)
        kept = minus(group.used[tenant], total(one.total for one in taken[:-1]))
        assert not fits(kept, group.shares[tenant].nominal if tenant in group.shares else (0, 0, 0))
