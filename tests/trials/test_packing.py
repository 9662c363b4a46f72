"""How many trials share a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import toy_trials
from toy_trials import SPACE, make_record, open_ledger

from nas_kd.trials import Ranking
from nas_kd.trials.context import Shortage
from nas_kd.trials.execution import Assignment
from nas_kd.trials.packing import GpuPacking, places_of_gpu, trials_of_gpu

RANKING = Ranking.default(toy_trials.METRIC)
KNOBS = {"width": 8, "rate": 0.1, "op": "conv"}


def measured(number: int, peak: float, usable: float | None = None) -> toy_trials.TrialRecord:
    diagnostics = {"gpu/peak_bytes": peak} | ({} if usable is None else {"gpu/usable_bytes": usable})
    return make_record(number, KNOBS, diagnostics=diagnostics)


def assignment(tmp_path: Path, work: float | None, shortage: Shortage | None = None) -> Assignment:
    return Assignment(0, KNOBS, 0, tmp_path, toy_trials.METRIC, RANKING, "", work=work, shortage=shortage)


@pytest.mark.parametrize(
    ("peak", "usable", "trials"),
    [(30e9, 80e9, 2), (36e9, 80e9, 2), (37e9, 80e9, 1), (90e9, 80e9, 1), (24e9, 80e9, 3), (10e9, 79e9, 7)],
)
def test_a_tenth_of_the_memory_stays_free(peak: float, usable: float, trials: int) -> None:
    assert trials_of_gpu(peak, usable) == trials
    packing = GpuPacking("auto", [measured(0, peak, usable)])
    assert places_of_gpu(packing.least) == trials
    assert round(packing.least, 4) == packing.least  # what Ray knows of a fraction
    assert trials * packing.least <= 1


def test_the_largest_trial_and_the_smallest_gpu_count(tmp_path: Path) -> None:
    packing = GpuPacking("auto")
    assert packing.share(assignment(tmp_path, 5.0)) == 1  # nothing is known
    packing.see(measured(0, 10e9), work=5.0)
    assert packing.least == 1  # of no GPU is known what it has for trials
    packing.see(measured(1, 8e9, 40e9), work=4.0)
    packing.see(measured(2, 8e9, 80e9), work=4.0)
    packing.see(make_record(3, KNOBS), work=99.0)  # it was not measured
    assert packing.least == 0.3333  # 40 / (10 * 1.1)
    assert packing.share(assignment(tmp_path, 2.0)) == 0.3333
    # A trial of more work than any that was measured may need more in proportion; of a known size it does not.
    assert packing.share(assignment(tmp_path, 7.0)) == 0.5
    assert packing.share(assignment(tmp_path, 99.0)) == 1
    packing.see(measured(4, 9e9), work=99.0)
    assert packing.share(assignment(tmp_path, 99.0)) == 0.3333
    assert packing.share(assignment(tmp_path, 2.0, Shortage(9e9, 0.3333))) == 1


def test_explicit_shares_stay_but_for_a_trial_that_ran_out_of_memory(tmp_path: Path) -> None:
    for wanted in (0.0, 0.6, 1.0):
        packing = GpuPacking(wanted, [measured(0, 30e9, 80e9)])
        assert (packing.least, packing.share(assignment(tmp_path, 9.0))) == (wanted, wanted)
        assert packing.share(assignment(tmp_path, 9.0, Shortage(9e9, 0.6))) == (wanted > 0)
    assert [places_of_gpu(share) for share in (1.0, 0.6, 0.5, 0.3333, 0.1)] == [1, 1, 2, 3, 10]


def test_a_driver_that_goes_on_knows_which_trials_ran_out_of_memory(tmp_path: Path) -> None:
    shortage = Shortage(30e9, 0.25)
    with open_ledger(tmp_path) as ledger:
        for _ in range(2):
            ledger.ask(SPACE)
        ledger.postpone(1, shortage)
    with open_ledger(tmp_path) as ledger:
        assert [proposal.shortage for proposal in ledger.running()] == [None, shortage]
