"""What the chat page makes of the text of a model, and how it looks: nothing runs, nothing hides, nothing jumps."""

from __future__ import annotations

import json
import random
import re

import pytest

from tests.model.serve.http.browser import Tab
from tests.model.serve.http.scripted import Held, Scripted, says
from tests.model.serve.http.test_page import ANSWER, IDLE, LAST, ask, change, told

pytestmark = pytest.mark.browser
HOSTILE = (
    "<img src=x onerror=hacked()>",
    "<script>hacked()</script>",
    "[a](javascript:hacked())",
    "![b](https://example.com/pixel.png)",
    "https://example.com/",
    "<svg/onload=hacked()>",
    "</div></article><style>*{display:none}</style>",
    "&lt;b&gt; &amp;",
)
PLAIN = "P H3 OL LI STRONG CODE DIV PRE SPAN BUTTON"  # elements of an answer
WIDE = "x" * 300
LONG = f"{WIDE}\n\n```python\n{WIDE} {WIDE}\n```\n- {WIDE}\n  - **{WIDE}**\n\n`{WIDE}`\n\n# {WIDE}"
CONTRAST = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = colour => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = colour => { const [r, g, b] = rgba(colour).map(v => (v /= 255) <= .04045 ? v / 12.92
    : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
  const ground = e => { while (e && !rgba(getComputedStyle(e).backgroundColor)[3]) e = e.parentElement;
    return e ? getComputedStyle(e).backgroundColor : "white"; };
  const poor = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !e.checkVisibility() || e.matches(":disabled, script, .unseen")) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) poor.push([walk.currentNode.data, (a + .05) / (b + .05)]);
  }
  return poor;
})()"""


# -- text of a model --
@pytest.mark.parametrize("form", ["{}", "```{0}\n{0}\n```", "- {0}\n  1. {0}", "**{}**", "# {}", "`{}`"])
def test_no_text_becomes_more_than_text(page: Tab, server: Scripted, form: str) -> None:
    text = "\n\n".join(form.format(one) for one in HOSTILE)
    page.value("window.hacked = () => { window.fell = true; }")
    server.name = HOSTILE[0]
    server.script = says(*(text[at : at + 7] for at in range(0, len(text), 7)))
    change(page, "system", HOSTILE[1])
    told(page, " ".join(HOSTILE))
    server.script = lambda handler: handler.error(400, HOSTILE[0])
    ask(page, HOSTILE[1])
    page.wait(f"document.querySelector('{LAST} .error')?.textContent === {json.dumps(HOSTILE[0])}")
    page.click("#show-chats")
    tags = page.value("[...new Set([...document.querySelectorAll('.answer *')].map(e => e.tagName))]")
    assert set(tags) <= set(PLAIN.split())
    assert page.value("document.querySelectorAll('a, img, svg, iframe, object, main style, main script').length") == 0
    read = page.value("document.querySelector('.answer').textContent")
    assert all(one in read for one in HOSTILE)
    assert page.value("window.fell") is None
    assert [url for url in page.asked_urls() if not url.startswith((server.url, "data:"))] == []


def test_drawing_loses_no_word_and_does_not_depend_on_the_pieces(page: Tab) -> None:
    """All words in their order, in few elements; drawn as it comes or at once, the same."""
    draw = random.Random(0)
    marks = [
        "\n",
        "\n\n",
        " ",
        "  ",
        "`",
        "``",
        "```",
        "\n```\n",
        "\n```py\n",
        "**",
        "*",
        "\n- ",
        "\n  - ",
        "\n7. ",
        "\n# ",
    ]
    marks += ["\t", "~~~", "\r\n", "    ", "<b>", "\n>", "\n        1) "]
    texts = []
    for _ in range(300):
        words = iter(range(1000))
        texts.append("".join(draw.choice([*marks, f"w{next(words)}"]) for _ in range(draw.randint(1, 40))))
    script = f"""(() => {json.dumps(texts)}.map(text => {{
      const [once, slowly] = [document.createElement("div"), document.createElement("div")];
      drawMarkdown(once, text);
      for (let at = 0; at <= text.length; at += 1) drawMarkdown(slowly, text.slice(0, at));
      const tags = [...once.querySelectorAll("*")].map(e => e.tagName);
      return [once.textContent, once.innerHTML === slowly.innerHTML, tags];
    }}))()"""
    for text, (read, is_same, tags) in zip(texts, page.value(script), strict=True):
        assert re.findall(r"w\d+", read) == re.findall(r"w\d+", text), text
        assert is_same, text
        assert set(tags) <= set(PLAIN.split()), text


def test_marks_become_elements(page: Tab, server: Scripted) -> None:
    server.script = says(
        "# T\nA **b** `c`\nd\n\n- e\n- f\n  more\n\n  3. g\n\n```py\nh\n\n  i `**j**`\n```\nk\n```\nopen"
    )
    told(page)
    children = page.value("[...document.querySelector('.answer').children].map(e => [e.tagName, e.textContent])")
    assert children == [
        ["H3", "T"],
        ["P", "A b c\nd"],
        ["OL", "ef\nmoreg"],
        ["DIV", "pyCopyh\n\n  i `**j**`"],
        ["P", "k"],
        ["DIV", "codeCopyopen"],
    ]
    assert page.value("[...document.querySelectorAll('.answer li')].map(e => e.value)")[-1] == 3


def test_long_marks_take_no_long_time(page: Tab) -> None:
    """What a model repeats for ever must not hang the page."""
    texts = [mark * 20_000 for mark in ("`", "*", "**", "- ", "``` x", "\n- ", "# ", "1. ", " ", "\t-", "~~~ ", "`a")]
    script = f"{json.dumps(texts)}.map(text => drawMarkdown(document.createElement('div'), text))"
    took = page.value(f"(() => {{ const began = performance.now(); {script}; return performance.now() - began; }})()")
    assert took < 4000


# -- how it looks --
@pytest.mark.parametrize(("width", "height"), [(360, 740), (1200, 800)])
def test_nothing_is_wider_than_the_screen(page: Tab, server: Scripted, width: int, height: int) -> None:
    server.name = WIDE
    server.script = says(LONG)
    page.resize(width, height)
    page.reload()
    page.wait(f"document.title === {json.dumps(WIDE)}")
    told(page, WIDE)
    server.script = lambda handler: handler.error(429, WIDE, Retry_After="100000")
    ask(page, WIDE)
    page.wait(f"document.querySelector('{LAST} .error')?.textContent")
    assert page.value("getComputedStyle(document.querySelector('pre')).overflowX") == "auto"
    page.value("document.querySelector('#prompt').focus()")
    page.type(f"{WIDE}\n" * 60)
    for dialog in ("", "#chats", "#drawer", "#unlock"):
        if dialog:
            page.value(f"document.querySelector('{dialog}').showModal(), drawChats()")
        wide = (
            "[document.documentElement, document.querySelector('main'), ...document.querySelectorAll('dialog[open]')]"
        )
        assert page.value(f"{wide}.filter(e => e.scrollWidth > e.clientWidth).map(e => e.tagName)") == []
        assert page.value("[document.documentElement.scrollWidth, scrollY]") == [width, 0]
        if dialog:
            page.press("Escape")
    box = page.value("(r => [r.top, r.bottom])(document.querySelector('#composer').getBoundingClientRect())")
    assert 0 < box[0] < box[1] <= height, "a long question leaves the buttons on the screen"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_stands_out(page: Tab, server: Scripted, dark: bool) -> None:
    page.dark(dark)
    server.script = says("**a** `b`\n```py\nc\n```\n- d")
    told(page)
    assert page.value("getComputedStyle(document.body).backgroundColor === 'rgb(22, 23, 26)'") is dark
    server.script = lambda handler: handler.error(400, "no")
    page.click(f"{LAST} .edit")
    assert page.value(CONTRAST) == []
    ask(page, "?")
    page.wait(f"document.querySelector('{LAST} .error')?.textContent")
    for dialog in ("chats", "drawer", "unlock"):
        page.value(f"drawChats(), document.querySelector('#{dialog}').showModal()")
    assert page.value(CONTRAST) == []


def test_everything_has_a_name_and_shows_its_focus(page: Tab, server: Scripted) -> None:
    told(page)
    page.value("drawChats()")
    nodes = page.ask("Accessibility.getFullAXTree")["nodes"]
    spoken = {"button", "textbox", "spinbutton", "log", "main", "dialog", "heading"}
    named = [one for one in nodes if not one["ignored"] and one["role"]["value"] in spoken]
    assert len(named) > 8
    assert [one for one in named if one["role"]["value"] != "main" and not one.get("name", {}).get("value")] == []
    for _ in range(12):
        page.press("Tab")
        script = "[document.activeElement, document.activeElement.closest('#composer')]"
        outlines = page.value(f"{script}.filter(e => e).map(e => getComputedStyle(e).outlineStyle)")
        assert "solid" in outlines or page.value("document.activeElement === document.body")


def test_it_follows_the_text_until_the_reader_scrolls_up(page: Tab, server: Scripted) -> None:
    gap = "(e => e.scrollHeight - e.clientHeight - e.scrollTop)(document.querySelector('main'))"
    top = "document.querySelector('main').scrollTop"
    lines = [f"line {number}\n\n" for number in range(300)]
    held = server.script = Held([*lines[:100], "a ", "b ", "c ", "d ", *lines[100:]])
    ask(page, "Go")
    held.let(101)
    page.wait(f"{ANSWER}.endsWith('a ') && {gap} < 2 && {top} > 500")
    at = page.value(top)
    page.wheel(-12)  # less than what counts as near the end
    page.wait(f"{top} === {at - 12}")
    for word in ("b ", "c ", "d "):  # the page does not grow by these
        held.let()
        page.wait(f"{ANSWER}.endsWith('{word}')")
    held.let(100)
    page.wait(f"{ANSWER}.includes('line 199')")
    assert page.value(top) == at - 12 and page.value("!document.querySelector('#end').hidden")
    page.click("#end")
    page.wait(f"{gap} < 2")
    held.let(100)
    page.wait(f"{IDLE} && {gap} < 2")
