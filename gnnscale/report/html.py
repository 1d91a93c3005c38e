"""The HTML of all pages: style sheet, document, section and table; text is escaped unless it is RawHtml."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

PAGE_CSS = """
:root { color-scheme: light dark; --ink: #1d1f21; --soft: #5c6166; --line: #d9dcdf; --paper: #fff; --tint: #f5f6f7; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e5e7; --soft: #a0a6ab; --line: #3a3f44; --paper: #181a1c; --tint: #212427; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1060px; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, "Helvetica Neue", Arial, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .7rem; padding-top: .6rem; border-top: 1px solid var(--line); }
p, ul { max-width: 50rem; } li { margin: .3rem 0; }
.soft, figcaption, .note { color: var(--soft); font-size: .875rem; }
.lead, .answer { font-size: 1.08rem; } h3 { font-size: 1.05rem; margin: 1.8rem 0 .3rem; } .limits .note { margin: .2rem 0; }
figure { margin: 1.4rem 0; break-inside: avoid; }
figure svg { display: block; width: 100%; height: auto; background: #fff; border-radius: 4px; }
figure.half svg { max-width: 600px; }
figcaption { margin-top: .4rem; max-width: 50rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .8rem; line-height: 1.35;
  font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem .3rem 0; text-align: left; vertical-align: top; overflow-wrap: normal; }
td { border-top: 1px solid var(--line); }
thead th { font-weight: 600; vertical-align: bottom; } thead th.number { white-space: normal; }
td:first-child, td:nth-child(2), td:nth-child(3) { white-space: nowrap; } td .wide-text { white-space: normal; }
.number { text-align: right; white-space: nowrap; }
.wide-text { min-width: 14rem; overflow-wrap: anywhere; } td .soft { font-size: inherit; }
.status { min-width: 7rem; white-space: normal; text-align: left; padding-left: .5rem; }
.formula { white-space: nowrap; }
tr.out td { color: var(--soft); }
.keys { display: flex; flex-wrap: wrap; gap: .6rem 2.2rem; margin: 1.4rem 0 0; }
.keys dt { color: var(--soft); font-size: .8rem; } .keys dd { margin: 0; font-size: 1.1rem; font-weight: 600; }
tr.chosen td { font-weight: 600; } summary { cursor: pointer; margin-top: .6rem; }
.limits { background: var(--tint); border-left: 3px solid #d55e00; padding: .4rem 1rem; max-width: 52rem; }
@media (max-width: 640px) { body { padding: 1.2rem .8rem 3rem; } h1 { font-size: 1.5rem; } figure { overflow-x: auto; }
  figure.wide svg { min-width: 620px; } }
@media print { body { font-size: 10pt; max-width: none; padding: 0; } h2 { break-after: avoid; }
  tr { break-inside: avoid; }
  :root { --ink: #000; --soft: #444; --line: #ccc; --paper: #fff; --tint: #fff; } .scroll { overflow: visible; }
  table { font-size: 7.5pt; } }
"""


class RawHtml(str):
    """A string that already is HTML."""


def render_document(title: str, body: list[str]) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{PAGE_CSS}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def render_section(heading: str, content: str) -> str:
    return f"<section>\n<h2>{heading}</h2>\n{content}\n</section>" if content else ""


def render_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], classes: list[str] | None = None, numbers_from: int = 1
) -> str:
    """Render a table; cells that are not RawHtml are escaped, columns from `numbers_from` on are aligned as numbers."""
    if not rows:
        return ""

    def cell(tag: str, column: int, content: str) -> str:
        kind = ' class="number"' if column >= numbers_from else ""
        return f"<{tag}{kind}>{content if isinstance(content, RawHtml) else escape(content)}</{tag}>"

    head = "".join(cell("th", k, h) for k, h in enumerate(heads))
    lines = []
    for row, kind in zip(rows, classes or [""] * len(rows)):
        attribute = f' class="{kind}"' if kind else ""
        lines.append(f"<tr{attribute}>" + "".join(cell("td", k, c) for k, c in enumerate(row)) + "</tr>")
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n'
        + "\n".join(lines)
        + "\n</tbody></table></div>"
    )


def render_prose(text: str) -> str:
    """Escape a sentence, raise its exponents, and let no line begin with a percent sign."""
    return re.sub(r"\^([\w.]*\w)", r"<sup>\1</sup>", escape(text)).replace(" %", "\u00a0%")


def format_duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
