"""One contract over the whole registry: the generators, their log forms, and the binary divergence."""

import math
import re

import mpmath as mp
import pytest
import torch

import oracle
from bandpo.core.band import band, binary_divergence
from bandpo.core.checks import as_work_dtype
from bandpo.core.coins import coins, excess, log_rest, one_minus_exp
from bandpo.core.divergences import BinaryForm, FDivergence, get_divergence, renyi_to_alpha
from helpers import NAMES, ROOT

U = torch.exp(torch.linspace(-8, 8, 401, dtype=torch.float64))


@pytest.mark.parametrize("name", NAMES)
def test_generator_is_convex_and_zero_at_one(name):
    f = get_divergence(name).f
    y = f(U)
    slope = (y[1:] - y[:-1]) / (U[1:] - U[:-1])
    assert f(torch.ones(1, dtype=torch.float64)).item() == pytest.approx(0.0, abs=1e-15)
    assert (slope[1:] - slope[:-1] >= -1e-9 * (1 + slope[1:].abs())).all()
    assert (y >= -1e-12).all() or name in ("js",)
    for u in (0.01, 0.7, 1.3, 50.0):
        want = oracle.generator(name)(mp.mpf(u))
        assert f(torch.tensor(u, dtype=torch.float64)).item() == pytest.approx(float(want), rel=1e-10, abs=1e-13)


def _ratio(t):
    """(u, u - 1) of t = log u, both exact, and so is their derivative, which that of expm1 is not for t << 0."""
    u = t.exp()
    return u, torch.expm1(t).detach() + (u - u.detach())


def _value(part, t):
    """f(e^t), f shifted to touch zero at 1: the part of an outcome that had probability 1."""
    u, moved = _ratio(t)
    return part(torch.ones_like(t), u, t, moved)


def _conjugate(part, t):
    """f*(e^t) = e^t f(e^-t): the part of an outcome that now has probability 1."""
    u, moved = _ratio(t)
    return part(u, torch.ones_like(t), -t, -moved)


@pytest.mark.parametrize("name", NAMES)
def test_log_form_equals_the_generator_to_the_last_digits(name):
    part = get_divergence(name).part
    generator = oracle.generator(name)
    t = [-1e-8, -1e-3, -0.2, -0.49, -0.51, -0.99, -1.01, -1.99, -2.01, -5.0, -20.0]
    with mp.workdps(60):
        h = mp.mpf(10) ** -20
        tilt = (generator(1 + h) - generator(1 - h)) / (2 * h) if name != "tv" else mp.mpf(0)

        def f(u):
            return generator(u) - tilt * (u - 1)

        for dtype, rel in ((torch.float64, 2e-14), (torch.float32, 4e-6)):
            x = torch.tensor(t, dtype=dtype, requires_grad=True)
            value, conjugate = _value(part, x), _conjugate(part, x)
            # With v = e^t: d f(v) / dt = v f'(v), and d f*(v) / dt = f*(v) - f'(1/v).
            (by_value,) = torch.autograd.grad(value.sum(), x)
            (by_conjugate,) = torch.autograd.grad(conjugate.sum(), x)
            slope, back = by_value / x.exp(), conjugate - by_conjugate
            for i, ti in enumerate(x.tolist()):
                u = mp.exp(mp.mpf(ti))
                assert value[i].item() == pytest.approx(float(f(u)), rel=rel), (ti, dtype)
                assert conjugate[i].item() == pytest.approx(float(u * f(1 / u)), rel=rel), (ti, dtype)
                # Slopes are only ever taken in float64, in the backward pass of the bounds.
                for got, at in ((slope, u), (back, 1 / u)) if dtype == torch.float64 else ():
                    want = mp.diff(f, at, h=at * mp.mpf(10) ** -20)
                    assert got[i].item() == pytest.approx(float(want), rel=10 * rel), (ti, dtype)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_binary_divergence_equals_the_definition(name, dtype):
    rel = 1e-12 if dtype == torch.float64 else 2e-5
    for a in (-1e-6, -0.02, -0.7, -3.0, -20.0, -80.0):
        old = torch.tensor(a, dtype=dtype)
        for shift in (-5.0, -0.3, -1e-3, 1e-3, 0.3, 5.0):
            new = (old + shift).clamp(max=0.0) if shift < 0 else old * math.exp(-shift)
            got = binary_divergence(new, old, name).item()
            with mp.workdps(60):
                want = oracle.divergence(name, old.item(), mp.mpf(new.item()) - mp.mpf(old.item()))
            if want > torch.finfo(dtype).max:
                want = mp.inf
            assert got == pytest.approx(float(want), rel=rel, abs=1e-37), (a, shift)


@pytest.mark.parametrize("name", NAMES)
def test_binary_divergence_is_zero_at_one_and_grows_outwards(name):
    old = -torch.logspace(-9, 1.9, 60, dtype=torch.float64)[:, None]
    assert (binary_divergence(old, old, name) == 0).all()
    down = binary_divergence(old - torch.linspace(0, 30, 200, dtype=torch.float64), old, name)
    up = binary_divergence(old * torch.linspace(1, 0, 200, dtype=torch.float64), old, name)
    for g in (down, up):
        assert (g >= 0).all()
        finite = torch.isfinite(g[:, 1:])
        assert ((g[:, 1:] - g[:, :-1] >= -1e-13 * g[:, 1:].abs()) | ~finite).all()


def test_elementary_functions_keep_their_digits():
    x = -torch.logspace(-12, 2.5, 300, dtype=torch.float64)
    with mp.workdps(200):
        exact = [mp.mpf(v) for v in x.tolist()]
        for ours, theirs, arg in (
            (lambda v: log_rest(v.exp(), one_minus_exp(v)), lambda v: mp.log(-mp.expm1(v)), exact),
            (lambda v: excess(torch.ones_like(v), v, torch.expm1(v)), lambda v: mp.expm1(v) - v, exact),
        ):
            want = torch.tensor([float(theirs(v)) for v in arg], dtype=torch.float64)
            torch.testing.assert_close(ours(x), want, rtol=5e-15, atol=0)


def test_coins_are_exact_to_a_few_ulp():
    old, shift = -torch.logspace(-9, 2, 23, dtype=torch.float64), torch.logspace(-12, 0.3, 12, dtype=torch.float64)
    old = old[:, None].expand(23, 24).flatten()
    new = torch.cat([old.view(23, 24)[:, :12] - shift, old.view(23, 24)[:, 12:] * torch.exp(-shift)], 1).flatten()
    k = coins(new, old)
    with mp.workdps(80):
        for i in range(old.numel()):
            a, b = mp.mpf(old[i].item()), mp.mpf(new[i].item())
            p, c, q, d = mp.exp(a), -mp.expm1(a), mp.exp(b), -mp.expm1(b)
            want = {"p": p, "c": c, "q": q, "d": d, "s": b - a, "t": mp.log(d / c), "moved": q - p}
            for name, value in want.items():
                assert getattr(k, name)[i].item() == pytest.approx(float(value), rel=2e-15, abs=0), (name, a, b)


def test_a_binary_form_of_a_users_own_takes_over_from_f():
    f = lambda u: (u - 1) ** 2 / (u + 1)  # noqa: E731
    value = lambda p, q, s, moved: moved * (moved / (p + q + 1e-300))  # noqa: E731
    seen = []

    def slope(k):
        seen.append(k.d.shape)
        return 4 * k.d * ((k.c / (k.c + k.d)) ** 2 - (k.p / (k.p + k.q)) ** 2)

    plain, short = FDivergence("plain", f), FDivergence("short", f, BinaryForm(value))
    newton = FDivergence("newton", f, BinaryForm(value, slope=slope))
    old = -torch.logspace(-4, 1.9, 80, dtype=torch.float64)
    want = band(old, 0.05, plain)
    for divergence in (short, newton):
        got = band(old, 0.05, divergence)
        torch.testing.assert_close(got.log_upper, want.log_upper, rtol=1e-10, atol=0)
        torch.testing.assert_close(got.log_lower, want.log_lower, rtol=1e-10, atol=0)
    assert len(seen) == 2 * 12  # Newton's trips, each side
    new = old + 0.3 * want.log_lower.clamp(min=-9)
    torch.testing.assert_close(
        binary_divergence(new.float(), old.float(), short), binary_divergence(new.float(), old.float(), plain)
    )


def test_work_dtype():
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert as_work_dtype(torch.zeros(2, dtype=dtype)).dtype == torch.float32
    assert as_work_dtype(torch.zeros(2, dtype=torch.float64)).dtype == torch.float64
    with pytest.raises(ValueError, match="int64"):
        as_work_dtype(torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("kll", r"unknown divergence 'kll' \(did you mean 'kl'\?\); known: kl, "),
        ("helinger", "did you mean 'hellinger2'"),
        ("alpha:1", "alpha must be a finite number other than 0 and 1"),
        ("alpha:x", "got 'x'"),
        (3, "must be a name"),
    ],
)
def test_unknown_names_are_refused_with_the_alternatives(name, message):
    with pytest.raises(ValueError, match=message):
        get_divergence(name)


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda u: u, r"f\(1\) must be 0, but f\(1\) = 1"),
        (lambda u: -((u - 1) ** 2), "must be convex, but its slope falls near u = "),
        (lambda u: torch.sin(u - 1), "must be convex"),
        (lambda u: torch.where(u > 2, torch.nan, (u - 1) ** 2), "must be finite for u > 0, but f\\("),
        (lambda u: 0.0, "must act elementwise on tensors"),
        (lambda u: ((u - 1) ** 2).sum(), "gave shape"),
        (lambda u: math.log(u), "raised"),
        (lambda u: 3 * (u - 1), "must not be linear"),
    ],
)
def test_a_wrong_generator_is_refused_by_the_property_it_lacks(f, message):
    with pytest.raises(ValueError, match=message):
        FDivergence(name="mine", f=f)


@pytest.mark.parametrize(
    ("mine", "name"),
    [
        (lambda u: -torch.log(u), "kl"),
        (lambda u: u * torch.log(u), "reverse_kl"),  # NaN at 0, and off by (u - 1)
        (lambda u: 0.5 * (u - 1).abs(), "tv"),
        (lambda u: u**2 - 1, "chi2"),
        (lambda u: 2 - 2 * torch.sqrt(u), "hellinger2"),
        (lambda u: 1 / u - 1, "neyman_chi2"),
    ],
)
def test_a_users_generator_agrees_with_the_built_in(mine, name):
    f = FDivergence(name="mine", f=mine)
    old = -torch.logspace(-4, 1.9, 80)
    for radius in (0.01, 0.05, 0.3):
        ours, want = band(old, radius, f), band(old, radius, name)
        torch.testing.assert_close(ours.log_upper, want.log_upper, rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(ours.lower, want.lower, rtol=1e-5, atol=1e-9)


def test_renyi_is_an_alpha_ball():
    order, radius, p = 2.0, 0.05, 0.3
    name, converted = renyi_to_alpha(order, radius)
    r = band(torch.tensor([p], dtype=torch.float64).log(), converted, name).upper.item()
    renyi = math.log(p * r**order + (1 - p) * ((1 - r * p) / (1 - p)) ** order) / (order - 1)
    assert renyi == pytest.approx(radius, rel=1e-12)
    with pytest.raises(ValueError, match="order must be positive"):
        renyi_to_alpha(1.0, 0.1)
    with pytest.raises(ValueError, match="radius must be positive"):
        renyi_to_alpha(2.0, -0.1)


def test_the_documented_example_runs():
    page = (ROOT / "docs" / "divergences.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    assert len(examples) >= 2
    for example in examples:
        exec(compile(example, "docs/divergences.md", "exec"), {})
