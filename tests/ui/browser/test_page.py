"""The page in a real browser, as a visitor uses it."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

PHONE = pytest.mark.parametrize("visit", [(420, False), (420, True)], indirect=True, ids=["light", "dark"])
BOTH_MODES = pytest.mark.parametrize("visit", [(1280, False), (1280, True)], indirect=True, ids=["light", "dark"])
PLACES = """
return Object.fromEntries(['status', 'unguided', 'guided', 'difference', 'verdict', 'curves', 'go'].map(name => {
  const box = document.getElementById('nrg-' + name).getBoundingClientRect();
  return [name, [box.left, box.top + scrollY, box.width, box.height].map(Math.round)];
}));
"""
DISTANCES = """
const done = arguments[arguments.length - 1], seen = [], until = performance.now() + 5000;
const look = () => {
  const times = [...document.querySelectorAll('#nrg-stage video')].map(video => video.currentTime);
  seen.push(Math.max(...times) - Math.min(...times));
  performance.now() < until ? requestAnimationFrame(look) : done(seen);
};
look();
"""
CONTRASTS = """
const channel = c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
const light = c => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
const parse = text => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
const behind = element => {
  for (; element; element = element.parentElement) {
    const color = parse(getComputedStyle(element).backgroundColor);
    if (color[3] > 0.99) return color;
  }
  return [255, 255, 255, 1];
};
return arguments[0].map(selector => {
  const element = document.querySelector(selector);
  const [a, b] = [light(parse(getComputedStyle(element).color)), light(behind(element))];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
});
"""


def weights(visit: Any) -> list[float]:
    return [float(visit.value(f"#nrg-weight-{index} input[type=number]")) for index in range(3)]


def test_settings_that_were_looked_at_and_left_alone_stay_as_they_are(visit: Any) -> None:
    visit.click("#nrg-more button")
    field = "#nrg-max_coefficient textarea, #nrg-max_coefficient input"
    visit.until(lambda: visit.all(field))
    time.sleep(1)  # what a field sends when it appears
    assert visit.value(field) == ""
    visit.sample()
    visit.until(lambda: len(visit.all("#nrg-stage video")) == 3)


@BOTH_MODES
def test_a_guided_run_from_the_prompt_to_the_downloads(visit: Any) -> None:
    places = visit.js(PLACES)
    visit.type("#nrg-prompt textarea", "a green star moving up")
    visit.sample()
    visit.until(lambda: len(visit.all("#nrg-stage video")) == 3)
    assert re.search(r"VQ [+-]\d\.\d\d · MQ [+-]\d\.\d\d · TA [+-]\d\.\d\d", visit.text("#nrg-verdict"))
    assert "oracle" in visit.text("#nrg-verdict")
    assert len(visit.all("#nrg-curves polyline")) == 5
    links = {link.text: link.get_attribute("href") for link in visit.all("#nrg-files a")}
    assert links.keys() == {"Both, mp4", "Guided, mp4", "Unguided, mp4", "Manifest, JSON"}
    manifest = visit.chromium.execute_async_script(
        "fetch(arguments[0]).then(answer => answer.json()).then(arguments[1])", links["Manifest, JSON"]
    )
    assert manifest["prompt"] == "a green star moving up"
    assert len(manifest["clips"]) == 2
    assert visit.js(PLACES) == places  # nothing jumped
    texts = ["#nrg-status p", "#nrg-verdict p.big", "#nrg-verdict p + p", ".nrg-head p", ".nrg-plan", ".nrg-files a"]
    assert min(visit.js(CONTRASTS, texts)) >= 4.5


def test_both_players_stay_within_50_milliseconds(visit: Any) -> None:
    visit.sample()
    ready = "return [...document.querySelectorAll('#nrg-stage video')].filter(v => v.readyState === 4).length"
    visit.until(lambda: visit.js(ready) == 3)
    assert visit.text("[data-nrg=play]") == "Pause"  # clips play when they arrive
    time.sleep(2.5)  # a whole round, in which late players catch up
    distances = visit.chromium.execute_async_script(DISTANCES)
    print(f"{len(distances)} looks, at most {1000 * max(distances):.0f} ms apart")
    assert len(distances) > 20
    assert max(distances) <= 0.05
    visit.click("[data-nrg=play]")
    paused = "return [...document.querySelectorAll('#nrg-stage video')].every(video => video.paused)"
    visit.until(lambda: visit.js(paused))


def test_a_preset_sets_the_sliders_and_a_slider_makes_it_custom(visit: Any) -> None:
    visit.click("#nrg-preset input")
    visit.until(lambda: visit.all("#nrg-preset ul[role=listbox] li"))
    next(item for item in visit.all("#nrg-preset ul[role=listbox] li") if "Paper 0.1 : 0.1 : 0.8" in item.text).click()
    visit.until(lambda: weights(visit) == [0.1, 0.1, 0.8])
    visit.type("#nrg-weight-0 input[type=number]", "0.5")
    visit.until(lambda: visit.value("#nrg-preset input") == "Custom")
    assert weights(visit) == [0.5, 0.1, 0.8]


def test_a_guidance_preset_sets_its_settings_and_a_slider_makes_it_custom(visit: Any) -> None:
    visit.click("#nrg-more button")
    visit.until(lambda: visit.all("#nrg-stop input[type=number]"))
    assert visit.value("#nrg-guidance-preset input").startswith("Balanced")
    visit.click("#nrg-guidance-preset input")
    visit.until(lambda: visit.all("#nrg-guidance-preset ul[role=listbox] li"))
    next(item for item in visit.all("#nrg-guidance-preset ul[role=listbox] li") if "Fast" in item.text).click()
    visit.until(lambda: visit.value("#nrg-stop input[type=number]").startswith("0.3"))
    assert visit.value("#nrg-guidance-preset input").startswith("Fast")
    visit.sample()
    assert visit.value("#nrg-guidance-preset input").startswith("Fast")
    visit.type("#nrg-every input[type=number]", "3")
    visit.until(lambda: visit.value("#nrg-guidance-preset input") == "Custom")


def test_cancel_stops_the_run_and_the_next_one_works(visit: Any) -> None:
    visit.type("#nrg-steps input[type=number]", "60")
    visit.click("#nrg-go")
    visit.status_is("step 3 of 60")
    visit.click("#nrg-cancel")
    visit.status_is("Cancelled", seconds=20)
    visit.until(lambda: visit.find("#nrg-go").is_enabled())
    assert not visit.find("#nrg-cancel").is_enabled()
    assert visit.text("#nrg-guided").endswith("Not finished")
    visit.type("#nrg-steps input[type=number]", "6")
    visit.sample()


def test_an_earlier_result_comes_back_with_its_settings(visit: Any) -> None:
    visit.type("#nrg-seed input", "11")
    visit.sample()
    first = visit.find("#nrg-guided video").get_attribute("src")
    visit.type("#nrg-seed input", "12")
    visit.sample()
    visit.tab("History")
    visit.until(lambda: len(visit.all("#nrg-history .nrg-card")) == 2)
    visit.click("#nrg-history .nrg-card:nth-child(2)")
    visit.until(lambda: visit.value("#nrg-seed input") == "11")
    assert visit.find("#nrg-guided video").get_attribute("src") == first
    visit.until(lambda: visit.find("#nrg-guided").is_displayed())  # the tab with the players


def test_a_clip_of_the_sweep_gives_its_weights(visit: Any) -> None:
    visit.tab("Sweep")
    visit.click("#nrg-sweep-go")
    visit.until(lambda: len(visit.all("#nrg-sweep .nrg-card video")) == 6, seconds=240)
    rows = [len(row.find_elements("css selector", ".nrg-card")) for row in visit.all("#nrg-sweep .nrg-row")]
    assert rows == [1, 2, 3]
    visit.click("#nrg-sweep [data-index='1']")
    visit.until(lambda: weights(visit) == [0.5, 0.5, 0.0])
    assert visit.value("#nrg-preset input") == "Paper 0.5 : 0.5 : 0"


def test_candidates_are_ranked_and_one_gives_its_seed(visit: Any) -> None:
    visit.tab("Best of n")
    visit.click("#nrg-best-go")
    visit.until(lambda: len(visit.all("#nrg-best .nrg-card")) == 4, seconds=240)
    titles = [card.text for card in visit.all("#nrg-best .nrg-card b")]
    assert [title.split(".")[0] for title in titles] == ["1", "2", "3", "4"]
    visit.click("#nrg-best [data-index='0']")
    visit.until(lambda: visit.value("#nrg-seed input") == titles[0].split("seed ")[1])


def test_marks_are_pressed_and_released_and_pull_the_next_candidates(visit: Any) -> None:
    visit.tab("Best of n")
    visit.click("#nrg-best-go")
    visit.until(lambda: len(visit.all("#nrg-best .nrg-card")) == 4, seconds=240)
    visit.status_is("Done")
    more, less = ("#nrg-best .nrg-choice:nth-child({}) [data-mark='{}']".format(*mark) for mark in ((1, 1), (4, -1)))
    pressed = "return [...document.querySelectorAll('#nrg-best .nrg-mark')].map(e => e.getAttribute('aria-pressed'))"
    visit.click(more)
    visit.status_is("More like seed")
    visit.click(less)
    visit.status_is("Less like seed")
    assert visit.js(pressed) == ["true", *["false"] * 6, "true"]
    visit.click(less)
    visit.status_is("No mark on seed")
    assert visit.js(pressed) == ["true", *["false"] * 7]
    assert visit.value("#nrg-seed input") == "0"  # a mark takes no seed
    visit.click("#nrg-again-go")
    visit.until(lambda: "Done" not in visit.text("#nrg-status"))
    visit.status_is("Done", seconds=240)
    seeds = sorted(card.text.split("seed ")[1] for card in visit.all("#nrg-best .nrg-card b"))
    assert seeds == ["4", "5", "6", "7"]


def test_a_word_the_model_never_saw_is_named_on_the_page(visit: Any) -> None:
    visit.type("#nrg-prompt textarea", "a red unicorn moving right")
    visit.click("#nrg-go")
    visit.status_is("'unicorn'")
    visit.until(lambda: visit.find("#nrg-go").is_enabled())


@PHONE
def test_a_phone_shows_everything_without_scrolling_sideways(visit: Any) -> None:
    visit.sample()
    visit.until(lambda: len(visit.all("#nrg-stage video")) == 3)
    for tab in ("Sweep", "Best of n", "History", "Compare"):
        visit.tab(tab)
        assert visit.js("return document.documentElement.scrollWidth") <= 420, tab
    boxes = {name: visit.js(PLACES)[name] for name in ("unguided", "guided", "go", "curves")}
    assert all(left >= 0 and left + width <= 420 for left, _, width, _ in boxes.values())
    assert boxes["unguided"][1] == boxes["guided"][1]  # side by side here too
    assert boxes["go"][3] >= 40  # a thumb hits it


def test_everything_is_reached_with_the_keyboard(visit: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    visit.js("document.activeElement.blur()")
    reached = set()
    for _ in range(60):
        ActionChains(visit.chromium).send_keys(Keys.TAB).perform()
        reached.add(
            visit.js("const e = document.activeElement; return e.dataset.nrg || e.closest('[id^=nrg-]')?.id || ''")
        )
    wanted = {
        "nrg-prompt",
        "nrg-go",
        "nrg-preset",
        "nrg-weight-0",
        "nrg-strength",
        "nrg-seed",
        "nrg-dice",
        "play",
        "seek",
    }
    assert wanted <= reached
