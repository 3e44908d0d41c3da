"""Tables of the benchmark of scale, in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["tables"]

_MIB = 2**20
_STEPS = {
    "find": "find the scans, read their table",
    "fingerprint": "fingerprint their files",
    "plan": "plan",
    "grid": "voxels, nodes and tracts of the grid",
    "empty store": "write tables, plan and empty arrays",
    "partitions": "make the tasks",
    "finalize": "read the records, write the subjects' variables",
    "open": "open the store",
    "graph": "make the graph of the features",
}


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def number(value: float, digits: int = 3) -> str:
    """Number with so many significant digits, and commas."""
    if value == 0:
        return "0"
    if abs(value) >= 10**digits:
        return f"{value:,.0f}"
    return f"{float(f'{value:.{digits}g}'):,.10g}"


def percent(value: float) -> str:
    """Share in percent."""
    return f"{100 * value:.0f} %"


def tables(result: Mapping[str, Any]) -> str:
    """All tables of the benchmark.

    Parameters
    ----------
    result
        What the benchmark wrote as JSON.

    Returns
    -------
    str
        Markdown.
    """
    parts = [
        _counts(result),
        _kinds(result),
        _overhead(result),
        _driver(result),
        _check(result),
        _scans(result),
        _evaluation(result),
    ]
    if "requests" in result:
        parts += [_fitted(result), _cost(result)]
    return "\n\n".join(parts)


def _counts(result: Mapping[str, Any]) -> str:
    rows = [[one["people"], one["counted"], one["ran"]] for one in result["counts"]]
    return table(["people", "tasks counted in the graph", "tasks that ran"], rows)


def _kinds(result: Mapping[str, Any]) -> str:
    biggest = result["driver"][-1]
    kinds = sorted(biggest["by_kind"].items(), key=lambda pair: -pair[1])
    rows: list[Sequence[object]] = [["ingest, partitions", f"{biggest['partitions']:,}"]]
    rows += [[f"features, {kind}", f"{n:,}"] for kind, n in kinds if n >= 50]
    rows += [["features, others", f"{sum(n for _, n in kinds if n < 50):,}"]]
    rows += [["**features, all**", f"**{biggest['feature_tasks']:,}**"]]
    rows += [["prediction", f"{biggest['prediction_tasks']:,}"]]
    return table([f"tasks of {biggest['people']:,} people", ""], rows)


def _overhead(result: Mapping[str, Any]) -> str:
    over = result["overhead"]
    rows: list[Sequence[object]] = [
        [
            f"{one['tasks']:,} tasks that do nothing, {one['workers']} workers",
            number(one["wall_ms"]),
            number(one["scheduler_ms"]),
            number(one["client_ms"]),
        ]
        for one in over["idle"]
    ]
    rows += [
        [
            f"features of a store without scans, {one['tasks']:,} tasks, {one['workers']} workers",
            number(1e3 * one["wall_s"] / one["tasks"]),
            number(1e3 * one["scheduler_s"] / one["tasks"]),
            "",
        ]
        for one in over["graph"]
    ]
    text = table(["ms a task", "wall", "scheduler's processor", "client's processor"], rows)
    held = over["held"]
    return (
        f"{text}\n\nEach further task of the features: {over['graph_ms']:.2f} ms of the processor "
        f"of the scheduler, {over['graph_bytes']:,.0f} bytes of its memory; a waiting task of the "
        f"ingest: {held['scheduler']:,.0f} bytes of the scheduler and {held['client']:,.0f} of the "
        "client. "
        f"A worker process has joined after {over['start_s']:.1f} s."
    )


def _driver(result: Mapping[str, Any]) -> str:
    sizes = result["driver"]
    rows: list[Sequence[object]] = [
        [words, *(number(s["seconds"][name]) if name in s["seconds"] else "" for s in sizes)]
        for name, words in _STEPS.items()
    ]
    rows.append(
        ["of which the scheduler's part, on its side", *(number(s["materialize_s"]) for s in sizes)]
    )
    about = {
        "bytes of one task of the ingest": "payload_bytes",
        "MB that all tasks of the ingest share": "geometry_bytes",
        "MB of the features' graph as it is sent": "graph_bytes",
        "MB of plan and tables": "plan_bytes",
        "objects of small variables and metadata": "small_objects",
        "peak memory of the driver, MiB": "peak_bytes",
    }
    for words, name in about.items():
        scale = 1e6 if words.startswith("MB") else _MIB if "MiB" in words else 1
        rows.append([words, *(number(s[name] / scale, 4) for s in sizes)])
    return table(["s", *(f"{s['people']:,} people" for s in sizes)], rows)


def _check(result: Mapping[str, Any]) -> str:
    checked = result["check"]
    rows = [
        [
            one["stage"],
            one["workers"],
            number(one["measured_s"]),
            number(one["predicted_s"]),
            f"{100 * one['error']:+.0f} %",
            ", ".join(f"{100 * error:+.0f} %" for error in one["error_by_round"]),
            f"{one['core_share']:.2f} / {one['core_share_learned']:.2f}",
            number(one["predicted_same_share_s"]),
            f"{100 * one['error_same_share']:+.0f} %",
        ]
        for one in checked["predictions"]
    ]
    head = ["stage", "workers", "measured, s", "predicted, s", "error", "by round"]
    head += ["share of a core, then / learned", "with that share, s", "error"]
    busy = ", ".join(percent(share) for share in checked["foreign_cpu"])
    walls = "; ".join(
        f"{name} {', '.join(number(wall) for wall in all_)}"
        for name, all_ in checked["walls"].items()
    )
    return (
        f"{table(head, rows)}\n\nOthers' processor time by round: {busy}. Largest worker: "
        f"{checked['peak_worker_bytes'] / _MIB:,.0f} MiB. Walls by round, s: {walls}."
    )


def _scans(result: Mapping[str, Any]) -> str:
    sizes = result["check"]["bytes_per_scan"]
    people = result["assumptions"]["people"]
    rows = [
        [name, number(size / 1e6), number(size * people / 1e12)] for name, size in sizes.items()
    ]
    return table(["", "MB a scan", f"TB of {people:,}"], rows)


def _evaluation(result: Mapping[str, Any]) -> str:
    found = {(r["stage"], r["workers"], r["limited"]): r for r in result["evaluation"]}
    rows = []
    alone = {}
    for (stage, workers, limited), one in found.items():
        if not limited:
            continue
        alone[stage] = f"{stage} {one['driver_s']:.0f}"
        free = found[stage, workers, False]
        rows.append(
            [
                stage,
                workers,
                number(one["seconds"]),
                percent(one["storage_busy"]),
                percent(one["scheduler_busy"]),
                number(free["seconds"]),
                number(free["gbit_s"]),
                percent(free["scheduler_busy"]),
                percent(free["workers_busy"]),
                number(one["broadcast_gb"]),
            ]
        )
    head = ["stage", "workers", "s", "storage busy", "scheduler busy"]
    head += ["s, storage without limit", "Gbit/s then", "scheduler then", "workers then"]
    head += ["GB sent of what is shared"]
    assumed, biggest = result["assumptions"], result["driver"][-1]
    return (
        f"{table(head, rows)}\n\nOf the seconds the driver has alone: {', '.join(alone.values())}. "
        f"Assumed: {assumed['storage']:g} Gbit/s of the storage, {assumed['link']:g} between two "
        f"machines, the first worker after {assumed['first']:g} s, one more every "
        f"{assumed['every']:g} s. Memory of the scheduler for all tasks of the features: "
        f"{biggest['feature_tasks'] * result['overhead']['graph_bytes'] / 1e6:.0f} MB."
    )


def _fitted(result: Mapping[str, Any]) -> str:
    rows = [
        [stage, kind, fixed, each]
        for stage, kinds in result["requests"]["fitted"].items()
        for kind, (fixed, each) in kinds.items()
    ]
    off = {stage: kinds for stage, kinds in result["requests"]["off"].items() if kinds}
    text = table(["stage", "request", "once", "a partition of 64 scans"], rows)
    return f"{text}\n\nOff on the third cohort, of three partitions: {off or 'none'}."


def _cost(result: Mapping[str, Any]) -> str:
    prices = result["assumptions"]
    rows: list[Sequence[object]] = []
    for stage, methods in result["requests"]["at"].items():
        dear = sum(methods.get(m, 0) for m in ("PUT", "POST", "LIST"))
        cheap = sum(methods.get(m, 0) for m in ("GET", "HEAD"))
        usd = (dear * prices["price_put"] + cheap * prices["price_get"]) / 1000
        rows.append(
            [stage, f"{dear:,}", f"{cheap:,}", f"{methods.get('DELETE', 0):,}", f"{usd:.2f}"]
        )
    sizes = result["check"]["bytes_per_scan"]
    stored = sum(size for name, size in sizes.items() if name != "source") * prices["people"] / 1e9
    text = table(["stage", "PUT, POST, LIST", "GET, HEAD", "DELETE", "USD"], rows)
    month = stored * prices["price_month"]
    return (
        f"{text}\n\nThe big arrays take {stored:,.0f} GB: {month:,.0f} USD a month. Prices: "
        f"{prices['price_put']} USD for 1,000 PUT, POST or LIST, {prices['price_get']} for 1,000 "
        f"GET or HEAD, {prices['price_month']} for a GB and month."
    )
