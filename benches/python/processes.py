"""Python's pools in the rows of benches/processes: prints the row's figures.

Called with the row, the pool ("futures", "forkserver", "pool" or "threads"), the number of workers, and "full" or
"quick". "futures" and "pool" fork, Linux's default until 3.13.
"""

import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor


def increment(i):
    return i + 1


def echo(payload):
    return payload


def stay(seconds):
    began = time.monotonic_ns()
    time.sleep(seconds)
    return os.getpid(), began


def burn(rounds):
    x = 1
    for i in range(rounds):
        x = (x * 31 + i) & 0xFFFF
    return x


class Futures:
    def __init__(self, workers, method="fork"):
        self.pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context(method))

    def each(self, f, arguments):
        futures = [self.pool.submit(f, argument) for argument in arguments]
        return [future.result() for future in futures]

    def call(self, f, argument):
        return self.pool.submit(f, argument).result()

    def map(self, f, arguments):
        # It has no chunks of its own choice: these are what its documentation advises for long inputs.
        return self.pool.map(f, arguments, chunksize=1_000)

    def close(self):
        self.pool.shutdown()


class Threads(Futures):
    def __init__(self, workers):
        self.pool = ThreadPoolExecutor(workers)


class Pool:
    def __init__(self, workers):
        self.pool = multiprocessing.get_context("fork").Pool(workers)

    def each(self, f, arguments):
        results = [self.pool.apply_async(f, (argument,)) for argument in arguments]
        return [result.get() for result in results]

    def call(self, f, argument):
        return self.pool.apply(f, (argument,))

    def map(self, f, arguments):
        return self.pool.map(f, arguments)

    def close(self):
        self.pool.close()
        self.pool.join()


def rounds(pool, n, rest):
    times = []
    for i in range(n):
        if rest:
            time.sleep(rest)
        start = time.perf_counter()
        assert pool.call(increment, i) == i + 1
        times.append(time.perf_counter() - start)
    times.sort()
    return times[n // 2] * 1e6


def pss_kib(process):
    with open(f"/proc/{process}/smaps_rollup") as rollup:
        return next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))


def main():
    row, kind, workers, is_full = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "full"
    build = {
        "futures": lambda: Futures(workers),
        "forkserver": lambda: Futures(workers, "forkserver"),
        "threads": lambda: Threads(workers),
        "pool": lambda: Pool(workers),
    }[kind]
    if row.startswith("P4"):
        began = time.monotonic_ns()
        pool = build()
        stays = pool.each(stay, [(8 if kind == "forkserver" else 2) if is_full and workers > 2 else 0.3] * workers)
        processes = sorted({process for process, _ in stays})
        assert len(processes) == workers, f"{len(processes)} workers took the first {workers} tasks"
        some = processes[:: -(-workers // 40)]
        weight = sum(map(pss_kib, some)) / len(some)
        figures = [(max(at for _, at in stays) - began) / 1e6, weight]
    elif row.startswith("P6"):
        start = time.perf_counter()
        pool = build()
        stays = pool.each(stay, [2 if is_full else 0.1] * workers)
        pool.close()
        figures = [time.perf_counter() - start]
        pool = None
    elif row.startswith("P7"):
        tasks = [2_000_000 if is_full else 20_000] * (4 if row == "P7a" else 12)
        start = time.perf_counter()
        expected = [burn(task) for task in tasks]
        serial = time.perf_counter() - start
        start = time.perf_counter()
        pool = build()
        assert pool.each(burn, tasks) == expected
        pool.close()
        elapsed = time.perf_counter() - start
        pool = None
        figures = [elapsed / (serial / min(workers, len(os.sched_getaffinity(0))))]
    else:
        pool = build()
        assert sum(pool.each(increment, range(1_000))) == 500_500
        if row == "P1a":
            n = 20_000 if is_full else 500
            start = time.perf_counter()
            assert sum(pool.each(increment, range(n))) == n * (n + 1) // 2
            figures = [n / (time.perf_counter() - start) / 1e6]
        elif row == "P1b":
            n = 1_000_000 if is_full else 5_000
            start = time.perf_counter()
            assert sum(pool.map(increment, range(n))) == n * (n + 1) // 2
            figures = [n / (time.perf_counter() - start) / 1e6]
        elif row == "P2":
            figures = [rounds(pool, 300 if is_full else 10, 0.002), rounds(pool, 3_000 if is_full else 50, 0)]
        else:
            size, n = {"P3a": (64 << 10, 500), "P3b": (1 << 20, 50), "P3c": (64 << 20, 3)}[row]
            payload, n = bytes(size if is_full else min(size, 1 << 20)), n if is_full else 2
            assert pool.call(echo, payload) == payload
            start = time.perf_counter()
            for _ in range(n):
                payload = pool.call(echo, payload)
            figures = [len(payload) * n / (time.perf_counter() - start) / 1e9]
    if pool:
        pool.close()
    print(*figures)


if __name__ == "__main__":
    main()
