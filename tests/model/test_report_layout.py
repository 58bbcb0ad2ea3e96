"""Layouts of one report that read as the same sentences."""

import html
import json
import quopri
import textwrap
import unicodedata

import pytest

from ctclip_model.data.report_layout import normalise_report, split_statements

REPORT = (
    "Bilateral pleural effusion was not observed. A ground-glass opacity of 9.3 mm is seen in the left lower lobe, and "
    "fibrotic changes are noted at the apex. The heart is not enlarged. No significant lymphadenopathy was detected."
)
PLAIN = REPORT.lower()
SENTENCES = REPORT.split(". ")


def rich_text(text):
    return "{\\rtf1\\ansi {\\fonttbl{\\f0 Arial;}}\\f0\\fs20 " + text.replace(". ", ".\\par ") + "\\par}"


def turkish_capitals(text):
    return text.replace("i", "\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}").upper()


LAYOUTS = {
    "as given": REPORT,
    "lower case": PLAIN,
    "capitals": REPORT.upper(),
    "Turkish capitals": turkish_capitals(REPORT),
    "dotless i": REPORT.replace("i", "\N{LATIN SMALL LETTER DOTLESS I}"),
    "wrapped": textwrap.fill(REPORT, 40),
    "wrapped, capitals": textwrap.fill(turkish_capitals(REPORT), 40),
    "wrapped, Windows line ends": textwrap.fill(REPORT, 40).replace("\n", "\r\n"),
    "wrapped, old Macintosh line ends": textwrap.fill(REPORT, 40).replace("\n", "\r"),
    "wrapped, escaped line ends": textwrap.fill(REPORT, 40).replace("\n", "\\n"),
    "wrapped, indented": textwrap.indent(textwrap.fill(REPORT, 40), "   "),
    "wrapped, quoted": textwrap.indent(textwrap.fill(REPORT, 40), "> "),
    "wrapped, blank lines between": textwrap.fill(REPORT, 40).replace("\n", "\n\n"),
    "broken anywhere": REPORT.replace("was not", "was\nnot").replace("left lower", "left\nlower"),
    "broken anywhere, lower case": PLAIN.replace("effusion was", "effusion\nwas").replace("left lower", "left\nlower"),
    "cut with hyphens": REPORT.replace("effusion", "effu-\nsion").replace("ground-", "ground-\n"),
    "soft hyphens": REPORT.replace("effusion", "effu\u00adsion"),
    "soft hyphens at line ends": REPORT.replace("effusion", "effu\u00ad\nsion").replace("ground-", "ground\u00ad\r\n"),
    "zero-width spaces": REPORT.replace("pleural", "pleu\u200bral"),
    "spaces": REPORT.replace(" ", "  ").replace("was", "was \t"),
    "hard spaces": REPORT.replace(" ", "\u00a0"),
    "no space after stops": REPORT.replace(". ", "."),
    "no space after stops, lower case": PLAIN.replace(". ", "."),
    "a sentence a line": REPORT.replace(". ", ".\n"),
    "points with numbers": "\n".join(f"{n}. {line}" for n, line in enumerate(REPORT.split(". "), 1)),
    "points without stops": "\n".join(f"- {line.rstrip('.')}" for line in REPORT.split(". ")),
    "HTML": "<p>" + html.escape(REPORT).replace(". ", ".<br/>").replace("was not", "was&nbsp;<b>not</b>") + "</p>",
    "HTML, wrapped": "".join(f"<div>{line}</div>" for line in textwrap.wrap(REPORT, 40)),
    "HTML, escaped twice": REPORT.replace(". ", ".&lt;br&gt;").replace("was not", "was&amp;nbsp;not"),
    "HTML, list of definitions": "<dl>" + "".join(f"<dd>{line}</dd>" for line in SENTENCES) + "</dl>",
    "HTML, tags of any name": "".join(f"<section id=s><quote>{line}</quote></section>" for line in SENTENCES),
    "HTML, tags within words": REPORT.replace("effusion", "<b>effu</b><span\tclass='x'>sion</span>").replace(
        " ", "<o:p> "
    ),
    "HTML, styles and scripts": "<style>p {a: b}</style><SCRIPT src=x>if (a < b) {}</SCRIPT><p nowrap>" + REPORT,
    "HTML, declarations": "<!DOCTYPE html><?xml version='1.0'?><report><![CDATA[" + REPORT + "]]></report><!-- x -->",
    "RTF": rich_text(REPORT),
    "RTF, line ends alone": REPORT.replace(". ", ".\\par "),
    "HL7, line ends": REPORT.replace(". ", ".\\X0A\\"),
    "HL7, breaks": REPORT.replace(". ", "\\.br\\"),
    "HL7, repetitions": REPORT.replace(". ", ".~"),
    "HL7, components": REPORT.replace(". ", "^"),
    "table of fields": " | ".join(SENTENCES),
    "JSON": json.dumps(REPORT.replace(". ", ".\n").replace(" was ", "\twas "))[1:-1],
    "quoted-printable": quopri.encodestring(REPORT.replace("was", "wa\u200bs").encode()).decode(),
    "ligatures": REPORT.replace("fi", "ﬁ").replace("fl", "ﬂ"),
    "full-width letters": REPORT.translate({code: code + 0xFEE0 for code in range(0x21, 0x7F)}),
    "decomposed letters": unicodedata.normalize("NFD", REPORT.replace("e", "é")),
    "typographer's hyphen": REPORT.replace("-", "\u2011"),
    "UTF-8 read as Latin": REPORT.replace(" ", "\u00a0").replace("fi", "ﬁ").encode().decode("latin-1"),
    "UTF-8 read as Windows-1252": REPORT.replace("-", "\u2013").encode().decode("cp1252"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_does_not_change_the_sentences(layout):
    assert normalise_report(LAYOUTS[layout]) == PLAIN


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_normalised_report_stays_as_it_is(layout):
    normalised = normalise_report(LAYOUTS[layout])
    assert normalise_report(normalised) == normalised


@pytest.mark.parametrize(
    ("report", "statements"),
    [
        ("", []),
        (" \n\u200b\n <br/> ", []),
        ("Emphysema\nNo effusion\nHiatal hernia", ["emphysema.", "no effusion.", "hiatal hernia."]),
        ("emphysema\nno effusion\nhiatal hernia", ["emphysema.", "no effusion.", "hiatal hernia."]),
        ("Emphysema  Sliding hernia", ["emphysema.", "sliding hernia."]),
        ("First paragraph here\n\nSecond one", ["first paragraph here.", "second one."]),
        ("A node of 9.3 mm. T5.Clear", ["a node of 9.3 mm.", "t5.", "clear."]),
        ("Effusion? No. Nodule?", ["effusion? no.", "nodule?"]),
        ("Effusion? Not seen. Mass?", ["effusion? not seen.", "mass?"]),
        ("Dr. Smith saw no mass; a cyst.", ["dr smith saw no mass.", "a cyst."]),
        (
            "The lungs are clear\nThe heart is enlarged\nThere is a nodule\nThis is new",
            ["the lungs are clear.", "the heart is enlarged.", "there is a nodule.", "this is new."],
        ),
        ("Effusion in the\nThe right side\nis seen", ["effusion in the the right side is seen."]),
        ("Seen on CT,\nThe effusion", ["seen on ct, the effusion."]),
        ("Size a<b and effusion c>d, nodule <p 5 mm>", ["size a<b and effusion c>d, nodule <p 5 mm>."]),
        ("Known ?effusion. ?Nodule", ["known ?effusion.", "?nodule."]),
        ("A nodule of ~5 mm | no mass", ["a nodule of ~5 mm.", "no mass."]),
        ("HU < 10 and > 5 mm", ["hu < 10 and > 5 mm."]),
        ("1) Nodule\n2) Cyst", ["nodule.", "cyst."]),
    ],
)
def test_sentences_end_at_stops_and_between_points(report, statements):
    assert split_statements(report) == statements


@pytest.mark.parametrize("part", ["<!--", "<!-- a", "<style>", "<a", "<a = ", "{\\*", "\u00ad ", ".~", " |", "\\", "="])
def test_time_grows_with_the_length_of_a_text(part):
    """Work, not time: an expression that starts again at each part would need minutes here."""
    assert isinstance(normalise_report(part * 60_000), str)
