"""CPython's ThreadPoolExecutor in the rows of benches/threads: prints the row's figures.

Called with the row, the number of workers, and "full" or "quick".
"""

import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor


def increment(i):
    return i + 1


def warmed(workers):
    pool = ThreadPoolExecutor(workers)
    assert sum(pool.map(increment, range(1_000))) == 500_500
    return pool


def with_futures(workers, n, keep):
    pool = warmed(workers)
    start = time.perf_counter()
    if keep:
        futures = [pool.submit(increment, i) for i in range(n)]
        assert sum(future.result() for future in futures) == n * (n + 1) // 2
    else:
        for i in range(n):
            pool.submit(increment, i)
        pool.shutdown()
    print((time.perf_counter() - start) * 1e9 / n)


def rounds(pool, n, pause):
    times = []
    for i in range(n):
        until = time.perf_counter() + pause
        while time.perf_counter() < until:
            pass
        start = time.perf_counter()
        assert pool.submit(increment, i).result() == i + 1
        times.append(time.perf_counter() - start)
    times.sort()
    return times[n // 2] * 1e6


def sleep(workers):
    def burst():
        futures = [pool.submit(time.sleep, 0.05) for _ in range(workers)]
        for future in futures:
            future.result()
        return time.perf_counter()

    start = time.perf_counter()
    pool = ThreadPoolExecutor(workers)
    first = burst()
    second = burst()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print((first - start) * 1e3, (second - first) * 1e3, peak)


def idle(workers, seconds):
    pool = warmed(workers)
    time.sleep(seconds / 10)
    before = time.process_time()
    time.sleep(seconds)
    print((time.process_time() - before) * 1e3)
    pool.shutdown()


def main():
    row, workers, is_full = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "full"
    n = 50_000 if is_full else 500
    if row in ("T1", "T2"):
        with_futures(workers, n, keep=row == "T1")
    elif row == "T3":
        pool = warmed(workers)
        print(rounds(pool, n // 5, 0), rounds(pool, n // 50, 200e-6))
    elif row == "T8":
        sleep(workers)
    elif row == "T10":
        idle(workers, 2 if is_full else 0.1)


main()
