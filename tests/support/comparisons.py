"""What a comparison of two students found."""

from sinkd_llm.report.comparison import GOLD, STUDENT, ComparedRow, Comparison, Contrast, RunEntry

BETTER = Contrast(0.02, 0.01, 0.03, 0.0004, 0.0008, 0.01, 3, 500)
UNCLEAR = Contrast(0.004, -0.006, 0.014, 0.4, 0.8, 0.5, 3, 500)


def comparison(
    against: Contrast | None = BETTER, gold: float = 0.7, over: Contrast = BETTER, metric: str = "acc"
) -> Comparison:
    rows = [
        ComparedRow("kl", STUDENT, "kl", {0: 0.80}, 0.80),
        ComparedRow("<b>x</b>", STUDENT, "<b>x</b>, alpha=0.5", {0: 0.82}, 0.82, 0.01, 0.81, 60.0, 10**9, 4, against),
        ComparedRow(GOLD, GOLD, GOLD, {0: gold}, gold),
    ]
    runs = [
        RunEntry("kl", "kl", STUDENT, 0, {"alpha": 0.5}, "f", metrics={"acc": 0.8}, held_out={"acc": 0.7}, steps=3),
        RunEntry("<b>x</b>", "<b>x</b>", STUDENT, 0, {"note": 'a,"b'}, "f", problem="sinkd: error: <script>"),
    ]
    return Comparison(
        "sinkd compare", "mine", metric, "kl", [0, 1, 2], 500, 50, rows, runs, "<b>x</b>", {GOLD: {"<b>x</b>": over}}
    )
