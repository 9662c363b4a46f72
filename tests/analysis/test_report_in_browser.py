"""The report as a reader meets it: `make test-browser`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Chromium, find_browser
from synthetic import HOSTILE, TEACHER, hostile_run, run

from nas_kd.analysis import TeacherPoint, write_report

pytestmark = pytest.mark.browser

PLOT = "document.querySelector('.plot')"  # the front, the first picture
POINTS = f"{PLOT}.querySelectorAll('.scatterlayer .points path.point')"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    path = find_browser()
    if path is None:
        pytest.skip("no Chromium or Chrome is installed")
    opened = Chromium(path, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of 30 trials."""
    folder = tmp_path_factory.mktemp("report")
    return write_report(run(), folder, title="Students", teacher=TEACHER, metadata={"run": "runs/demo"}).report


def open_page(browser: Chromium, page: Path, **options: int) -> None:
    browser.open(page, **options)
    browser.run(f"{PLOT}.scrollIntoView()")  # figures are drawn when they come near the window
    browser.wait(f"{POINTS}.length > 0")


def test_hover_click_legend_and_zoom(browser: Chromium, page: Path) -> None:
    open_page(browser, page)
    x, y = browser.centre(f"{POINTS}[0]")
    browser.mouse("mouseMoved", x - 1, y)
    browser.mouse("mouseMoved", x, y)
    browser.wait(f"{PLOT}.querySelector('.hoverlayer .hovertext')")
    assert "trial" in browser.run(f"{PLOT}.querySelector('.hoverlayer').textContent")
    browser.click(f"{POINTS}[0]")
    browser.wait("document.querySelector('table.trials tr.hit')")
    number = browser.run("document.querySelector('table.trials tr.hit').id").removeprefix("trial-")
    again = browser.run("document.querySelector('table.trials tr.hit + tr.hit code').textContent")
    assert again == f"nas-kd reproduce runs/demo --trial {number}"
    browser.run("scrollTo(0, 0)")
    hidden = f"{PLOT}.data.filter(trace => trace.visible == 'legendonly').length"
    assert browser.run(hidden) == 0
    browser.click(f"{PLOT}.querySelector('.legendtoggle')")
    browser.wait(f"{hidden} == 1")
    before = browser.run(f"{PLOT}.layout.xaxis.range")
    left, top = browser.centre(f"{PLOT}.querySelector('.nsewdrag')")
    browser.mouse("mouseMoved", left, top)
    browser.mouse("mousePressed", left, top, 1)
    browser.mouse("mouseMoved", left + 60, top + 5)
    browser.mouse("mouseMoved", left + 120, top + 5)
    browser.mouse("mouseReleased", left + 120, top + 5, 1)
    browser.wait(f"{PLOT}.layout.xaxis.range.join() != {before}.join()")
    assert browser.errors == []


def test_axes_are_chosen(browser: Chromium, page: Path) -> None:
    open_page(browser, page)
    free = "document.getElementById('free')"
    browser.run(f"{free}.scrollIntoView()")
    browser.wait(f"{free}.querySelectorAll('.points path.point').length > 0")
    assert browser.run(f"{free}.layout.xaxis.type") == "log"
    choose = "(s => { s.selectedIndex = 1; s.dispatchEvent(new Event('change')) })"
    browser.run(f"{choose}(document.querySelectorAll('.axes select')[0])")
    browser.wait(f"{free}.layout.xaxis.title.text == 'parameters'")
    browser.run("document.querySelector('.axes input').click()")
    browser.wait(f"{free}.layout.xaxis.type == 'linear'")
    # The front of these axes: no trial has fewer parameters and a better value.
    data = browser.run(f"{free}.data.map(trace => [trace.x, trace.y])")
    front, trials = list(zip(*data[0], strict=True)), list(zip(*data[1], strict=True))
    assert front
    assert all(any(x <= other_x and y >= other_y for x, y in front) for other_x, other_y in trials)
    assert not browser.errors


def test_equal_values_have_an_axis_around_them(browser: Chromium, page: Path) -> None:
    open_page(browser, page)
    ranges = {".3~p": ("[1, null, 1]", [0.95, 1.009]), "": ("[-40]", [-42, -38]), ".2~%": ("[0.2, 0.3]", None)}
    for form, (values, expected) in ranges.items():
        axis = f"{{ tickformat: {form!r} }}"
        found = browser.run(
            f"(() => {{ const layout = {{ yaxis: {axis} }}; separate([{{ y: {values} }}, {{ y: [0], yaxis: 'y2' }}], "
            "layout); return layout.yaxis.range; })()"
        )
        assert found == expected


def test_the_table_is_sorted_and_filtered(browser: Chromium, page: Path) -> None:
    open_page(browser, page)
    first = "document.querySelector('table.trials tbody tr').id"
    assert browser.run(first) == "trial-0"
    button = "document.querySelector('table.trials thead th button')"
    browser.click(button)
    assert browser.run(first) == "trial-0"  # sorted by the number, upwards
    browser.click(button)
    assert browser.run(first) == f"trial-{max(record.number for record in run())}"
    browser.run(
        "(() => { const field = document.querySelector('input[type=search]'); field.value = 'CUDA out of memory'; "
        "field.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )
    browser.wait("document.querySelectorAll('table.trials tbody tr').length < 5")
    assert "CUDA" in browser.run("document.querySelector('table.trials tbody').textContent")
    assert browser.errors == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_it_fits_the_window_in_both_colour_schemes(
    browser: Chromium, page: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    open_page(browser, page, width=width, dark=dark)
    browser.run("document.querySelector('.axes option').textContent = 'a metric with a long name, '.repeat(3)")
    assert browser.run("document.documentElement.scrollWidth") <= width
    colour = browser.run("getComputedStyle(document.body).backgroundColor")
    shades = [int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(",")[:3]]
    assert (max(shades) < 80) is dark
    bars = "document.getElementById('importance')"
    browser.run(f"{bars}.scrollIntoView()")
    browser.wait(f"{bars}.querySelectorAll('.bars path').length > 0")
    room = browser.run(f"{bars}.querySelector('.nsewdrag').getBoundingClientRect().width / {bars}.clientWidth")
    assert room > 0.75  # on a phone the names stand above the bars
    browser.picture(tmp_path / "report.png")
    assert browser.errors == []


def test_names_never_run(browser: Chromium, tmp_path: Path) -> None:
    teacher = TeacherPoint(HOSTILE, 10**8, 0.9)
    paths = write_report(hostile_run(), tmp_path, title=HOSTILE, teacher=teacher, metadata={HOSTILE: HOSTILE})
    browser.open(paths.report)
    browser.wait(f"{PLOT}.querySelector('.main-svg')")
    x, y = browser.centre(f"{PLOT}.querySelector('.nsewdrag')")
    for step in range(-200, 200, 20):  # labels of marks on the way
        browser.mouse("mouseMoved", x + step, y)
    assert browser.run("document.title").split() == HOSTILE.split()  # and not "run"
    assert browser.run("document.querySelectorAll('img[src=x]').length") == 0
    assert browser.errors == []
