"""Independent oracle: the band straight from its definition, bisected in 60-digit arithmetic.

Nothing here shares a line with the package: the generators are written out again in mpmath, and a bound is
found by halving an interval of the log-ratio, or of the log of its size.
"""

from __future__ import annotations

from collections.abc import Callable

import mpmath as mp

DIGITS = 60


def _alpha(a: float) -> Callable[[mp.mpf], mp.mpf]:
    a = mp.mpf(a)

    def f(u: mp.mpf) -> mp.mpf:
        if u == 0:
            return 1 / a if a > 0 else mp.inf
        return (u**a - a * u + a - 1) / (a * (a - 1))

    return f


def _xlogx(u: mp.mpf) -> mp.mpf:
    return u * mp.log(u) if u > 0 else mp.mpf(0)


GENERATORS: dict[str, Callable[[mp.mpf], mp.mpf]] = {
    "kl": lambda u: u - 1 - mp.log(u) if u > 0 else mp.inf,
    "reverse_kl": lambda u: _xlogx(u) - u + 1,
    "tv": lambda u: abs(u - 1) / 2,
    "chi2": lambda u: (u - 1) ** 2,
    "neyman_chi2": lambda u: (u - 1) ** 2 / u if u > 0 else mp.inf,
    "hellinger2": lambda u: (mp.sqrt(u) - 1) ** 2,
    "js": lambda u: (_xlogx(u) - (u + 1) * mp.log((u + 1) / 2)) / 2,
    "jeffreys": lambda u: (u - 1) * mp.log(u) if u > 0 else mp.inf,
}


def generator(name: str) -> Callable[[mp.mpf], mp.mpf]:
    return _alpha(float(name[6:])) if name.startswith("alpha:") else GENERATORS[name]


def divergence(name: str, old_logp: float, log_ratio: mp.mpf, digits: int = DIGITS) -> mp.mpf:
    """g_f(p, r) = p f(r) + (1 - p) f((1 - r p)/(1 - p)), log_ratio may be -inf."""
    # 1 - r p is a difference: carry as many digits more as p or 1 - p has leading zeros or nines.
    with mp.workdps(digits + 60):
        f = generator(name)
        p = mp.exp(mp.mpf(old_logp))
        r = mp.exp(log_ratio)
        # At the edge the last digit may fall below 0.
        return p * f(r) + (1 - p) * f(max((1 - r * p) / (1 - p), mp.mpf(0)))


def bound(name: str, old_logp: float, radius: float, upper: bool) -> mp.mpf | None:
    """The log-ratio bound, to about 25 digits, or None where the side is saturated."""
    with mp.workdps(DIGITS + 60):
        a, radius = mp.mpf(old_logp), mp.mpf(radius)
        edge = -a if upper else -mp.inf
        if upper:
            # At the edge q = 1: p f(1/p) + (1 - p) f(0).
            p = mp.exp(a)
            g_edge = p * generator(name)(1 / p) + (1 - p) * generator(name)(mp.mpf(0))
        else:
            g_edge = divergence(name, old_logp, edge)
        if g_edge <= radius:
            return None
        sign = 1 if upper else -1
        # log |log r| from e^-140 up to the edge, or to where the ratio is below e^-e^100.
        low, high = mp.mpf(-140), mp.log(-a) if upper else mp.mpf(7)
        if not upper and divergence(name, old_logp, -mp.exp(high)) <= radius:
            return -mp.inf  # below e^-1096: too small to compare
        size = mp.mpf(0)
        # Illinois steps on log(g / radius), a nearly straight function of log |log r|; bisection if that stalls.
        f_low = mp.log(divergence(name, old_logp, sign * mp.exp(low)) / radius)
        f_high = divergence(name, old_logp, sign * mp.exp(high))
        f_high = mp.log(f_high / radius) if f_high != mp.inf else mp.mpf(10) ** 6
        tolerance = mp.mpf(10) ** -25
        for trip in range(400):
            halve = trip % 3 == 2 or trip < 8
            secant = (low * f_high - high * f_low) / (f_high - f_low)
            size = (low + high) / 2 if halve else secant
            g = divergence(name, old_logp, sign * mp.exp(size))
            f_size = mp.log(g / radius) if g != mp.inf else mp.mpf(10) ** 6
            if f_size < 0:
                low, f_low = size, f_size
            else:
                high, f_high = size, f_size
            if f_size == 0 or high - low < tolerance or abs(f_size) < tolerance:
                break
        else:
            raise AssertionError(f"oracle did not converge: {name} {old_logp} {radius} {upper}")
        return sign * mp.exp(size)
