"""`metamobile bench`: how fast models answer, measured so that they can be compared.

Each model runs in a process of its own (`bench_worker`), so that its memory peak, its cold start and its
threads are its own. After a warm-up the processes take turns, in rounds whose order is reversed each time:
what slows the machine for a while slows all of them. No run is thrown away; medians are told, with the 10th
and 90th percentile. A ratio is the median of the rounds' ratios to the first model, with the lowest and the
highest round.

Times are the wall's and the processor's. On a machine that does other work, the first are too long and the
second hold, as long as the model runs in one thread; in several, processor time is their sum.

What no figure here tells: anything about another machine, a phone or an accelerator.
"""

from __future__ import annotations

import json as jsonlib
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil

from metamobile.files import aside, expect_file, expect_folder, write_text

# What a worker's process runs. The command's package goes first, as with it metamobile imports no torch.
WORKER = "import metamobile_cli, metamobile.deploy.bench_worker as worker; worker.main()"
THREAD_SETTINGS = (  # the last one is read by the runtimes that take a number of threads when they open
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "METAMOBILE_THREADS",
)
ROUND_SECONDS, MOST_ROUND_SECONDS = 2.0, 10.0  # of a turn, where the user does not say how many runs
BUSY = 0.25  # processors that other programs use, from which a measurement says so
SETTLE = 0.25  # seconds between turns with several threads, in which a pool stops to spin
CLAIM = "these are times of this machine alone: none of a phone or another processor follows from them"


@dataclass(frozen=True)
class Times:
    """Milliseconds of one call, over all runs."""

    median: float
    p10: float
    p90: float
    fastest: float


@dataclass(frozen=True)
class Ratio:
    """To the first model: the median of the rounds' ratios, the lowest and the highest round."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class BenchRow:
    """One model. None is not measured.

    `weights` are "file" or "random"; `size` is height and width in pixels, `runs` the timed runs of all
    rounds, `round_ms` the rounds' medians by the wall's clock. `processors` is processor time over wall time.
    `memory_bytes` is the process's peak from its start; `open_seconds` (its runtime's packages imported,
    the model opened) and `first_seconds` (the first answer) are together the cold start.
    """

    model: str
    runtime: str
    versions: dict[str, str]
    precision: str
    weights: str
    size: list[int]
    batch_size: int
    threads: int
    runs: int
    wall_ms: Times
    cpu_ms: Times | None
    ratio: Ratio
    cpu_ratio: Ratio | None
    round_ms: list[float]
    processors: float | None
    memory_bytes: int | None
    open_seconds: float
    first_seconds: float
    file_bytes: int | None

    @property
    def cold_start(self) -> float:
        return self.open_seconds + self.first_seconds


@dataclass(frozen=True)
class Bench:
    """All models that could be measured, in the order they were given; those that could not, and why.

    `order` is who took turns in each round, by their numbers among those given.
    """

    rows: list[BenchRow]
    failures: list[str]
    notes: list[str]
    machine: dict[str, Any]
    settings: dict[str, Any]
    order: list[list[int]]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def bench(
    models: str | Path | Sequence[str | Path],
    *,
    size: int | Sequence[int] | None = None,
    batch_size: int = 1,
    threads: int = 1,
    rounds: int = 5,
    runs: int | None = None,
    out: str | Path | None = None,
    json: str | Path | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Bench:
    """Time run folders, weights, exported files of any format, and networks by name, which have random
    weights; a network in PyTorch in its deployed form.

    `size` in pixels, a side or height and width, is each model's own unless given; `runs` of a turn are 40 or
    as many as 2 seconds take, but no more than 10 seconds. Written are bench.json and bench.png into the
    folder `out`, and the same JSON into the file `json`; nothing before all is measured. A model that cannot
    be measured is named in `failures`. Errors: ValueError for settings that cannot be.
    """
    names = [str(one) for one in ([models] if isinstance(models, str | Path) else models)]
    for key, value in (("batch_size", batch_size), ("threads", threads), ("rounds", rounds), ("runs", runs)):
        if value is not None and value < 1:
            raise ValueError(f"{key} {value}: expected 1 or more")
    if not names:
        raise ValueError("no model to measure; expected files, run folders or names")
    if out is not None:
        expect_folder(out)
    if json is not None:
        expect_file(json)
    sides = None if size is None else [size, size] if isinstance(size, int) else [int(side) for side in size]
    machine, processors = describe_machine(threads, device)
    settings = {
        "size": sides,
        "batch_size": batch_size,
        "threads": threads,
        "rounds": rounds,
        "runs": runs,
        "device": device,
        "processors": processors,
    }
    opening = {"size": sides, "batch_size": batch_size, "threads": threads, "device": device}
    runners, order = [Runner(name) for name in names], []
    done, total = 0, len(names) * (1 + rounds)

    def tell() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    try:
        for runner in runners:
            runner.start(threads)
            runner.facts = runner.ask("open", model=runner.model, processors=processors, **opening)
            tell()
        load = Load([runner.pid for runner in runners if not runner.error])
        for number in range(rounds):
            turns = list(range(len(runners)))[:: -1 if number % 2 else 1]
            order.append([index for index in turns if not runners[index].error])
            for index in turns:
                runners[index].turn(runs)
                tell()
                if threads > 1:
                    time.sleep(SETTLE)
        machine["others"] = load.others([runner.pid for runner in runners if not runner.error])
        for runner in runners:
            runner.memory = runner.ask("end").get("memory")
    finally:
        for runner in runners:
            runner.stop()
    rows = make_rows([runner for runner in runners if not runner.error], settings)
    failures = [runner.error for runner in runners if runner.error]
    notes = [note for runner in runners for note in runner.facts.get("notes", ())]
    found = Bench(rows, failures, notes + remarks(rows, machine, settings), machine, settings, order)
    if rows and runners[0].error:
        found.notes.append(f"ratios are to {rows[0].model}, as {names[0]} could not be measured")
    _write(found, out, json)
    return found


class Runner:
    """A worker's process, as its parent sees it; `error` says why there are no figures."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.error = ""
        self.facts: dict[str, Any] = {}
        self.walls: list[list[float]] = []  # seconds of each run of each round
        self.cpus: list[list[float]] = []
        self.memory: int | None = None
        self.process: subprocess.Popen[str] | None = None

    def start(self, threads: int) -> None:
        settings = {name: str(threads) for name in THREAD_SETTINGS}
        self.said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  # until `stop`
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            encoding="utf-8",
            # no modules from the folder we are in, no number of threads but ours
            env={**os.environ, "PYTHONSAFEPATH": "1", **settings},
            start_new_session=True,  # Ctrl-C is the parent's, who ends the workers
        )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def ask(self, what: str, **order: Any) -> dict[str, Any]:
        """The worker's answer; {} of one that failed, now or before."""
        if self.error:
            return {}
        assert self.process is not None and self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(jsonlib.dumps({"do": what, **order}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:  # it ended before it was asked
            line = ""
        answer = jsonlib.loads(line) if line else {"error": self._last_words()}
        if "error" in answer:
            reason = answer["error"]
            self.error = reason if self.model in reason else f"{self.model}: {reason}"
            self.stop()
            return {}
        return answer

    def _last_words(self) -> str:
        assert self.process is not None
        code = self.process.wait()
        self.said.seek(0)
        lines = [line.strip() for line in self.said.read().splitlines() if line.strip()]
        how = f"ended by signal {-code}" if code < 0 else f"ended with code {code}"
        return f"its process {how}{': ' + lines[-1] if lines else ''}"

    def turn(self, runs: int | None) -> None:
        times = self.ask("run", runs=runs, seconds=ROUND_SECONDS, most=MOST_ROUND_SECONDS)
        if times:
            self.walls.append(times["wall"])
            self.cpus.append(times["cpu"])

    def stop(self) -> None:
        """End the process, whatever it does: it has nothing to save."""
        if self.process is None:
            return
        self.process.kill()
        self.process.communicate()
        self.said.close()
        self.process = None


def make_rows(runners: Sequence[Runner], settings: dict[str, Any]) -> list[BenchRow]:
    """Figures from the times of all; ratios are to the first."""
    rows = []
    for runner in runners:
        facts = {key: value for key, value in runner.facts.items() if key != "notes"}
        wall_seconds = sum(map(sum, runner.walls))
        has_cpu = any(runner.cpus)
        rows.append(
            BenchRow(
                model=runner.model,
                batch_size=settings["batch_size"],
                threads=settings["threads"],
                runs=sum(map(len, runner.walls)),
                wall_ms=times_of(runner.walls),
                cpu_ms=times_of(runner.cpus) if has_cpu else None,
                ratio=ratio_of(runner.walls, runners[0].walls),
                cpu_ratio=ratio_of(runner.cpus, runners[0].cpus) if has_cpu else None,
                round_ms=[1e3 * median(times) for times in runner.walls],
                processors=sum(map(sum, runner.cpus)) / wall_seconds if has_cpu else None,
                memory_bytes=runner.memory,
                **facts,
            )
        )
    return rows


def times_of(rounds: Sequence[Sequence[float]]) -> Times:
    """Seconds of each run of each round -> milliseconds."""
    every = 1e3 * np.concatenate([np.asarray(times) for times in rounds])
    middle, low, high = np.percentile(every, (50, 10, 90))
    return Times(float(middle), float(low), float(high), float(every.min()))


def ratio_of(rounds: Sequence[Sequence[float]], first: Sequence[Sequence[float]]) -> Ratio:
    """Of the medians of the same rounds."""
    ratios = [median(ours) / median(theirs) for ours, theirs in zip(rounds, first, strict=True)]
    return Ratio(median(ratios), min(ratios), max(ratios))


def remarks(rows: Sequence[BenchRow], machine: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """What a reader of the figures must know."""
    threads, said = settings["threads"], []
    others = max(machine["others_before"], machine.get("others") or 0.0)
    if others > BUSY:
        trust = (
            "; go by processor time and the ratios" if threads == 1 else "; measure again on an idle machine"
        )
        said.append(
            f"other programs use {others:.1f} of {machine['processors']} processors: times by the wall's "
            f"clock are too long{trust}"
        )
    sizes = {tuple(row.size) for row in rows}
    if len(sizes) > 1:
        sides = ", ".join(f"{height}x{width}" for height, width in sorted(sizes))
        said.append(f"pictures differ in size ({sides}), each model's own; --size N gives all the same")
    if threads > machine["usable"]:
        said.append(f"{threads} threads on {machine['usable']} processors get in each other's way")
    if threads > 1:
        said.append("processor time is the sum over all threads")
    for row in rows:
        if row.processors is not None and row.processors > threads + BUSY:
            said.append(
                f"{row.model}: {row.runtime} used {row.processors:.1f} processors at a time, where {threads} "
                "was asked for: it does not take the number of threads"
            )
        if settings["runs"] is None and row.runs < 40 * len(row.round_ms):
            said.append(f"{row.model}: {row.runs} runs in all, as they take long")
    return [*said, CLAIM]


class Load:
    """What other programs compute while the workers `pids` take their turns."""

    def __init__(self, pids: Sequence[int]) -> None:
        self.start, self.busy, self.ours = time.monotonic(), _busy_seconds(), dict(_process_seconds(pids))

    def others(self, pids: Sequence[int]) -> float:
        """Processors in use by others, on the mean since the start."""
        passed = time.monotonic() - self.start
        ours = sum(seconds - self.ours[pid] for pid, seconds in _process_seconds(pids))
        return max(0.0, (_busy_seconds() - self.busy - ours) / max(passed, 1e-9))


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    kinds = ("user", "nice", "system", "irq", "softirq", "steal")
    return float(sum(getattr(times, kind, 0.0) for kind in kinds))


def _process_seconds(pids: Sequence[int]) -> list[tuple[int, float]]:
    times = [(pid, psutil.Process(pid).cpu_times()) for pid in pids]
    return [(pid, one.user + one.system) for pid, one in times]


def describe_machine(threads: int, device: str) -> tuple[dict[str, Any], list[int]]:
    """What the figures are of; and the processor that all workers are bound to, where one thread is wanted
    and the system can (Linux): the idlest of the fastest."""
    usable = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []
    count = psutil.cpu_count() or 1
    busy = psutil.cpu_percent(interval=0.5, percpu=True)
    name, lines = platform.processor() or platform.machine(), []
    if Path("/proc/cpuinfo").is_file():  # Linux, where Python knows only "x86_64"
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    machine = {
        "processor": name,
        "processors": count,
        "cores": psutil.cpu_count(logical=False),
        "usable": len(usable) or count,
        "virtual": any(line.startswith("flags") and " hypervisor" in line for line in lines)
        if lines
        else None,
        "memory": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
        "load": list(psutil.getloadavg()),
        "others_before": sum(busy) / 100,
    }
    if threads > 1 or device != "cpu" or not usable:
        return machine, []
    idle = {index: share for index, share in enumerate(busy)}
    return machine, [max(usable, key=lambda index: (_top_speed(index), -idle.get(index, 0.0)))]


def _top_speed(processor: int) -> int:
    """In kHz; 0 where the system does not tell, as in virtual machines."""
    path = Path(f"/sys/devices/system/cpu/cpu{processor}/cpufreq/cpuinfo_max_freq")
    return int(path.read_text()) if path.is_file() else 0


def _write(found: Bench, out: str | Path | None, json: str | Path | None) -> None:
    text = jsonlib.dumps(found.to_dict(), indent=1, allow_nan=False) + "\n"
    if json is not None:
        write_text(json, text)
    if out is None:
        return
    write_text(Path(out) / "bench.json", text)
    if not found.rows:
        logging.getLogger(__name__).warning("nothing was measured: no figure is drawn")
        return
    from metamobile.deploy.bench_figure import draw

    with aside(Path(out) / "bench.png") as path:
        draw(found).savefig(path, format="png", dpi=150)
