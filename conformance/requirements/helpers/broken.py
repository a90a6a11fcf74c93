"""Which requirement a wrong answer breaks, by what was asked and by the levels of the case that are not the plain ones."""

from conformance.truth.space import PLAIN, Levels

HALF = ("float16", "bfloat16")
TILE = 16  # sizes above it count as large
HANDLED = {"copied": "TORCH-01", "reloaded": "TORCH-03", "assigned": "TORCH-37", "converted": "TORCH-19", "swapped": "TORCH-16",
           "served": "TORCH-13", "threaded": "TORCH-59", "checkpointed": "TORCH-21", "functional": "TORCH-20"}


def breaks(kind: str, levels: Levels) -> str:
    """The id of the requirement that a wrong answer of this kind breaks. The levels are those of the smallest case that fails:
    each that is not plain is needed for the failure."""
    special = {name for name, level in levels.items() if level != PLAIN[name]}
    if "handled" in special:
        return HANDLED[str(levels["handled"])]
    if kind == "y":
        return _of_y(levels, special)
    if kind in ("dx", "dA", "dB"):
        return _of_gradient(kind, levels, special)
    if kind == "W":
        return _of_weight(levels)
    if kind in ("A", "B"):
        return "STATE-01" if levels["history"] == "loaded" else "MERGE-09" if levels["merged"] else "GRAD-15"
    if kind == "dropout in inference":
        return "DROP-01"
    if kind in ("y with dropout", "one mask"):
        return _of_dropout(kind, levels)
    if kind == "state":
        return {"loaded": "STATE-02", "unmerged": "MERGE-06", "cycled": "MERGE-13"}.get(str(levels["history"]), "STATE-09")
    return {"y without a graph": "TORCH-33", "format of y": "DTYPE-01", "format of dx": "DTYPE-02", "x": "FWD-11",
            "dy": "GRAD-15"}[kind]


def _of_y(levels: Levels, special: set[str]) -> str:
    large = any(int(levels[size]) > TILE for size in ("in", "out", "rank"))
    return next(id for holds, id in (
        (_drops_in_inference(levels), "DROP-01"),
        (levels["content"] in ("NaN", "infinity"), "FWD-13"),
        (levels["content"] in ("tiny", "huge") and levels["format"] == "bfloat16", "DTYPE-10"),
        (levels["merged"] and levels["mode"] == "dropout", "DROP-10"),
        (levels["merged"], "MERGE-03"),
        (levels["needs"] == "not x", "GRAD-13"),
        (levels["needs"] != "all", "GRAD-21"),
        (levels["history"] == "loaded", "STATE-02"),
        (levels["history"] == "cycled", "MERGE-13"),
        (levels["history"] != "set" and levels["mode"] == "inference", "STATE-14"),
        (levels["history"] != "set", "STATE-09"),
        (levels["mode"] == "dropout" or levels["rate"], "DROP-01"),
        (levels["mode"] == "inference", "GRAD-12"),
        ("x lies" in special, "FWD-10"),
        (levels["format"] in HALF, "DTYPE-08"),
        (levels["scaling"] == "rslora", "SCALE-03"),
        (int(levels["rank"]) > min(int(levels["in"]), int(levels["out"])), "FWD-07"),
        (levels["scale"] == "0", "SCALE-06"),
        (levels["scale"] == "-1/4", "SCALE-11"),
        (levels["scale"] in ("1/64", "64", "far below", "far above"), "SCALE-12"),
        ("scale" in special, "SCALE-01"),
        (levels["leading"] == 0, "FWD-03"),
        (int(levels["leading"]) > 2, "FWD-05"),
        (not levels["bias"], "FWD-08"),
        (large, "FWD-19"),
        (int(levels["rows"]) > TILE, "FWD-09"),
        (levels["rank"] == 1, "FWD-06"),
        (True, "FWD-01"),
    ) if holds)


def _of_gradient(kind: str, levels: Levels, special: set[str]) -> str:
    large = any(int(levels[size]) > TILE for size in ("rows", "in", "out", "rank"))
    return next(id for holds, id in (
        (_drops_in_inference(levels), "DROP-01"),
        (levels["content"] in ("NaN", "infinity"), "FWD-13"),
        (levels["merged"], "MERGE-14"),
        (levels["needs"] == "not x", "GRAD-13"),
        (levels["needs"] != "all", "GRAD-21"),
        (levels["calls"] == "accumulated", "GRAD-07"),
        (levels["calls"] != "once", "GRAD-20"),
        (levels["history"] in ("unmerged", "cycled"), "MERGE-10"),
        (levels["history"] == "loaded", "STATE-10"),
        (levels["history"] != "set", "STATE-09"),
        (levels["mode"] == "dropout", "DROP-04"),
        (levels["mode"] == "inference", "GRAD-12"),
        ("dy lies" in special, "GRAD-09"),
        (levels["format"] in HALF, "DTYPE-08"),
        (levels["scaling"] == "rslora", "SCALE-09"),
        ("leading" in special, "GRAD-14"),
        (large, "GRAD-19"),
        (True, {"dx": "GRAD-01", "dA": "GRAD-02", "dB": "GRAD-03"}[kind]),
    ) if holds)


def _drops_in_inference(levels: Levels) -> bool:
    """Whether inference mode and a rate are needed together."""
    return levels["mode"] == "inference" and levels["rate"] != PLAIN["rate"]


def _of_dropout(kind: str, levels: Levels) -> str:
    """A layer whose weight or factors are wrong after its history is wrong with every mask."""
    return next(id for holds, id in (
        (levels["calls"] == "other mode before backward", "GRAD-20"),
        (levels["history"] in ("unmerged", "cycled"), "MERGE-10"),
        (levels["history"] == "loaded", "STATE-10"),
        (levels["history"] != "set", "STATE-09"),
        (True, {"y with dropout": "DROP-03", "one mask": "DROP-04"}[kind]),
    ) if holds)


def _of_weight(levels: Levels) -> str:
    if levels["merged"]:
        return "MERGE-18" if levels["mode"] == "inference" else "SCALE-10" if levels["scaling"] == "rslora" else "MERGE-01"
    return {"unmerged": "MERGE-06", "cycled": "MERGE-13", "loaded": "STATE-09", "stepped": "PARAM-03"}.get(
        str(levels["history"]), "GRAD-15")
