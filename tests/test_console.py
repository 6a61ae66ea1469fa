"""The console: aligned lines, no colour codes outside a terminal, nothing hostile inside one."""

from __future__ import annotations

import io

import pytest

from grpo_jax import console, harmless_text, step_lines

METRICS = {
    "reward": 0.5,
    "accuracy": 0.25,
    "completions/mean_length": 61.3,
    "completions/clipped_ratio": 0.015,
    "frac_reward_zero_std": 1.0,
    "kl": 0.0,
    "entropy": 0.75,
    "grad_norm": 1.25,
    "loss": -2e-9,
    "sampling/sampling_logp_difference/max": 3.1e-7,
    "time/step": 5.5,
    "tokens_per_second": 2644.0,
}
HOSTILE = "\x1b[2J\x1b[31m[bold red]pay[/bold red]\r\x07\u202eabc\u200b\ud800\x9b1m[/nothing]\n   9   1.0000"
RECORD = {
    "question": "How many [b]pens[/b]?",
    "completion": HOSTILE,
    "gold": "7",
    "parsed": "",
    "rewards": {"accuracy": 0.0, "format": 1.0},
    "outcome": "unparsable",
    "advantage": -0.5,
}


def plain_screen(stream: io.StringIO, num_steps: int = 100) -> console.Screen:
    return console.open_screen(stream, num_steps=num_steps, first_step=0, max_characters=200)


def ends_of_words(line: str) -> list[int]:
    """Where each right-aligned cell ends."""
    return [i for i in range(len(line)) if line[i] != " " and line[i + 1 : i + 3] in ("  ", "")]


def test_every_line_ends_its_columns_where_the_header_does():
    lines = step_lines.StepLines(100_000)
    huge = {column.metric: -1.2345e300 for column in step_lines.COLUMNS}
    tiny = {column.metric: -3e-300 for column in step_lines.COLUMNS}
    odd = dict.fromkeys(huge, float("nan")) | {"reward": float("-inf")}
    _, header, line = lines.lines(1, METRICS)
    for text in (line, *(lines.lines(99_999, values)[-1] for values in (huge, tiny, odd, {}))):
        assert len(text) == len(header)
        # "step s" has one blank inside, so only two blanks part columns.
        assert ends_of_words(text) == ends_of_words(header)


@pytest.mark.parametrize(
    ("value", "style", "text"),
    [
        (0.51234, "decimals", " 0.5123"),
        (-0.00001, "decimals", " 0.0000"),
        (123456.0, "decimals", "1.2e5"),
        (12345.6, "decimals", "1.2e4"),
        (123.456, "decimals", " 123.46"),
        (0.0004, "small", " 4.0e-4"),
        (0.25, "small", "  0.250"),
        (0.5, "percent", "  50.0%"),
        (1234567890.0, "whole", "1.2e9"),
        (None, "whole", "      -"),
        (float("inf"), "tenths", "    inf"),
    ],
)
def test_a_number_takes_the_fullest_form_that_fits(value, style, text):
    assert step_lines.number(value, 7, style) == text.rjust(7)


def test_the_header_comes_again_after_twenty_lines():
    stream = io.StringIO()
    screen = plain_screen(stream)
    for step in range(1, 42):
        screen.step(step, METRICS)
    lines = stream.getvalue().splitlines()
    headers = [index for index, line in enumerate(lines) if line.startswith("step ")]
    assert headers == [1, 22, 43]  # the legend is line 0


def test_a_missing_metric_is_a_dash():
    line = step_lines.StepLines(10).lines(3, {"reward": 1.0})[-1]
    assert line.split() == ["3", "1.0000", *["-"] * (len(step_lines.COLUMNS) - 1)]


def test_plain_output_has_no_escape_codes_and_a_completion_cannot_pose_as_a_line():
    stream = io.StringIO()
    screen = plain_screen(stream)
    screen.message("loading \x1b[1mweights ...")
    screen.step(1, METRICS)
    screen.samples(1, [RECORD])
    screen.close()
    text = stream.getvalue()
    assert all(character == "\n" or character.isprintable() for character in text)
    assert "\\x1b[2J\\x1b[31m[bold red]pay[/bold red]\\r\\x07\\u202eabc\\u200b\\ud800\\x9b1m" in text
    assert "                |    9   1.0000" in text.splitlines()  # led by the bar
    assert "How many [b]pens[/b]?" in text


def test_only_a_terminal_that_can_draw_gets_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def opened(stream: io.StringIO) -> type:
        screen = plain_screen(stream)
        screen.close()
        return type(screen)

    monkeypatch.setenv("TERM", "xterm")
    assert opened(Terminal()) is console.RichScreen
    assert opened(io.StringIO()) is console.PlainScreen
    monkeypatch.setenv("TERM", "dumb")
    assert opened(Terminal()) is console.PlainScreen


def test_a_narrow_encoding_does_not_end_the_run():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    screen = console.open_screen(stream, num_steps=1, first_step=0, max_characters=200)
    screen.message("ready → set é")
    assert stream.buffer.getvalue() == b"ready \\u2192 set \\xe9\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [80, 160])
def test_a_terminal_shows_hostile_markup_as_text(width):
    stream = io.StringIO()
    screen = console.RichScreen(stream, num_steps=5, first_step=3, max_characters=400, width=width)
    screen.message("a [bold]message[/bold] \\x1b[2J")
    assert "step 2/5" in stream.getvalue()  # where the run goes on
    screen.step(3, METRICS)
    screen.samples(1, [RECORD])
    screen.close()
    text = stream.getvalue()
    for hostile in ("\x1b[2J", "\x1b[31m[bold", "\x07", "\u202e", "\x9b"):
        assert hostile not in text
    for shown in ("a [bold]message[/bold]", "[bold red]", "[b]pens[/b]?", "\\x1b[2J"):
        assert shown in text
    assert "\x1b[?25h" in text  # the cursor is given back


def test_a_narrow_terminal_leaves_out_whole_columns_and_says_which():
    legend, note, header, line = step_lines.StepLines(100, width=80).lines(1, METRICS)
    assert len(header) == len(line) <= 80
    for kept in ("reward", "accur", "length", "gap"):
        assert kept in header.split()
    assert "judge" not in header and "judge" in note
    assert legend == step_lines.LEGEND


def test_long_text_loses_its_middle():
    text = "\n".join(str(number) for number in range(100))
    cut = harmless_text.cut_middle(text, 1000, 4)
    assert cut.split("\n") == ["0", "1", "[... 96 lines left out ...]", "98", "99"]
    assert harmless_text.cut_middle("abcdefghij", 4) == "ab [... 6 characters left out ...] ij"
    assert harmless_text.cut_middle("short", 5) == "short"


def test_a_supervised_run_has_columns_of_its_own():
    stream = io.StringIO()
    screen = console.open_screen(
        stream, num_steps=1, first_step=0, max_characters=200, table=step_lines.SFT_TABLE
    )
    screen.step(1, {"loss": 0.25, "epoch": 0.5, "num_tokens": 835})
    legend, header, line = stream.getvalue().splitlines()
    assert legend == step_lines.SFT_TABLE.legend
    assert header.split()[:3] == ["step", "loss", "entropy"]
    assert line.split() == ["1", "0.2500", "-", "-", "-", "0.5000", "835", "-", "-"]


def test_a_reward_that_said_nothing_is_a_dash():
    cells = console.sample_cells({**RECORD, "rewards": {"accuracy": 1.0, "short": float("nan")}}, 100)
    assert cells["rewards"] == "accuracy 1, short -"
