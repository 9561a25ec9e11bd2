"""The settings of :func:`rllc.sample`: what is sampled, and how it is run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from rllc.arguments import names_checked
from rllc.errors import InputError, is_real, must_be, one_of

_BATCH_SIZE = 32
"""The paper's minibatch."""

_FEW_MINIBATCHES = 4
"""Up to so many in an epoch, their pairing may double λ̂, and all rows together are affordable."""

_MANY_MINIBATCHES = 100
"""From so many in an epoch on, their pairing adds less than an error shows."""


@names_checked
@dataclass(frozen=True)
class Sampling:
    """How much is sampled, and at which resolution; the defaults are the paper's, but for few rows.

    >>> Sampling(num_draws=100).num_steps
    100

    The paper's are these. What :func:`rllc.estimate` takes when no sampling is given is
    ``Sampling(num_chains=16, num_draws=50)``: the same work as 4 × 200 with the same spread of λ̂,
    in more memory and no more time. 16 chains' own means show its error with 15 degrees of freedom,
    and whether chains agree. It needs a start that is not w* (``start="gaussian"``, the default of
    rllc.sgld), or the first draws count four times as much, and an εγ of at least 0.08, so that 50
    steps are 4 relaxation times.

    Args:
        num_chains: independent chains for each refinement; 4, the paper's, show whether they agree.
        num_draws: draws kept from each chain.
        num_burnin_steps: steps before the first draw counts. 0 in the paper: chains start at w*.
        num_steps_bw_draws: steps from one draw to the next.
        batch_size: rows of a minibatch. All chains of all refinements of one data set see the same
            minibatches. ``None``: the paper's 32, but all rows of a data set that has at most 4
            such minibatches, or whose sampler needs all rows. Minibatches of one epoch exclude
            each other, which adds to λ̂ the more, the fewer they are
            (:func:`rllc.statistics.biases.pairing_bias`).
        n_beta: nβ, sample size times inverse temperature. It multiplies the mean loss per token (or
            example) of a minibatch: Σℓ/n over its n tokens that count, padding left out, so that
            rows with more tokens weigh more. Baseline and draws are means over the same tokens.
        seed: of minibatches and noise.
        first_chain: number of the first chain. A chain's noise depends on its number, so further
            chains of an earlier result (``first_chain=4`` after four) are those that a larger call
            would have run.
        num_probes: at how many draws a step is looked at a second time, to tell whether it is too
            large; 0 is none. It changes no draw. A probe costs one evaluation; the largest
            curvature, measured once, 13 of one chain.
        start: where chains start. ``None``: ``"gaussian"`` for a sampler whose law gives the width
            of a direction, with a prior to hold it (no walls, and εγ of at least 0.004, so that
            1000 steps forget a start), else ``"center"``.
            ``"center"``: at w*, as in the paper. λ̂ is then too low by the
            share 1/(num_draws · εaᵢ) or so of each direction: 2.5 % at the paper's settings, 25 %
            at a tenth of its lr. ``"gaussian"``: at a draw from the local Gaussian approximation
            N(w*, 1/(aᵢ(1 − εaᵢ/4))), aᵢ = nβ hᵢ + γ (εaᵢ taken as 2 at most), for a sampler whose
            law gives that width. The curvature hᵢ of each weight is estimated from the variance of
            32 minibatch gradients at w*: for a log loss near its minimum the Hessian is the Fisher
            information. This removes the bias where hᵢ is right or nβ hᵢ is small beside γ. Where
            hᵢ is too low, chains come down from too wide.
        control_variate: subtract (g_B − ĝ)·(v − v*) from each draw, to first order what the slope
            of the minibatch adds. g_B is the gradient at w* on the draw's minibatch, ĝ the mean of
            K = 128 others. It is 0 on average, because a draw depends neither on its own minibatch
            nor on those K; λ̂ stays unbiased. Of the slope's noise a share of about τ/K remains, τ
            being the autocorrelation time in draws. Its mean also takes off what minibatches of one
            epoch add by excluding each other. ``None``: where an epoch has fewer than 100
            minibatches, and more than one. It costs a backward pass of the whole model at
            each draw, and K forward and backward passes before the first step, once for all
            refinements of a data set, so it pays for many at once (``examples/RESULTS.md``).
        target_se: stop a refinement once its standard error is at most this, on λ̂'s own scale: for
            2 % pass 0.02 times the value you expect. It is looked at every 20 draws from 40 on;
            ``num_draws`` is then the most that is drawn. Low errors come with low values, so
            stopping favours these a little: on 300 copies of a quadratic intervals covered 94 %
            instead of 97 %.
        autocast: ``"bfloat16"`` does the forward pass's matrix products in that precision. Chain
            state, noise, softmax and sums stay float32; so does sdpa attention of
            :class:`rllc.models.AttentionOnly` on a CPU. ``None``: the model's own.
        train_mode: run the model in training mode (dropout, batch statistics) instead of eval mode.
        common_noise: give chains the same noise on every data set: it then depends on seed, weights
            and chain alone. What it does alike on two data sets cancels in
            ``estimate.difference(("1:6", "code"), ("1:6", "all"))``, whose standard deviation was
            0.66 to 0.78 of that with noise of its own; errors of single values stay. By default
            data sets have independent errors, which may be added in squares by whoever compares
            figures.

    Raises:
        InputError: a number is out of its range.
    """

    num_chains: int = 4
    num_draws: int = 200
    num_burnin_steps: int = 0
    num_steps_bw_draws: int = 1
    batch_size: int | None = None
    n_beta: float = 30.0
    seed: int = 0
    first_chain: int = 0
    num_probes: int = 5
    start: str | None = None
    control_variate: bool | None = None
    target_se: float | None = None
    autocast: str | None = None
    train_mode: bool = False
    common_noise: bool = False

    def __post_init__(self) -> None:
        check_counts(
            "Sampling",
            num_chains=(self.num_chains, 1),
            num_draws=(self.num_draws, 1),
            num_burnin_steps=(self.num_burnin_steps, 0),
            num_steps_bw_draws=(self.num_steps_bw_draws, 1),
            batch_size=(_BATCH_SIZE if self.batch_size is None else self.batch_size, 1),
            first_chain=(self.first_chain, 0),
            num_probes=(self.num_probes, 0),
        )
        for name in ("common_noise", "train_mode"):
            value = getattr(self, name)
            must_be("Sampling", name, value, isinstance(value, bool), "True or False")
        chosen = self.control_variate
        right = chosen is None or isinstance(chosen, bool)
        must_be("Sampling", "control_variate", chosen, right, "True, False or None")
        target = self.target_se
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise InputError(f"Sampling: `seed` must be an integer, got {self.seed!r}.")
        if not one_of(self.start, (None, "center", "gaussian")):
            raise InputError(
                f"Sampling: `start` must be 'center', 'gaussian' or None, got {self.start!r}."
            )
        if target is not None and not (is_real(target) and target > 0):
            raise InputError(
                f"Sampling: `target_se` must be a positive number or None, got {target!r}."
            )
        if not one_of(self.autocast, (None, "bfloat16")):
            raise InputError(
                f"Sampling: `autocast` must be None or 'bfloat16', got {self.autocast!r}."
            )
        if not is_real(self.n_beta) or not 1e-30 <= self.n_beta <= 1e30:
            raise InputError(
                f"Sampling: `n_beta` must be a positive number, got {self.n_beta!r} (float32 holds "
                f"those from 1e-30 to 1e30); the paper uses 30."
            )

    def of_rows(self, num_rows: int, *, full_batch: bool = False) -> Sampling:
        """Return these settings with what the number of rows decides.

        >>> Sampling().of_rows(96).batch_size, Sampling().of_rows(1000).batch_size
        (96, 32)

        Each data set has its own: a refinement gives the same draws alone or in company.

        Args:
            num_rows: of a data set.
            full_batch: whether the sampler needs the energy of all rows.
        """
        batch_size, control_variate = self.batch_size, self.control_variate
        if batch_size is None:
            few = full_batch or num_rows <= _FEW_MINIBATCHES * _BATCH_SIZE
            batch_size = num_rows if few else _BATCH_SIZE
        if control_variate is None:
            control_variate = 1 < num_rows / batch_size < _MANY_MINIBATCHES
        return replace(self, batch_size=batch_size, control_variate=control_variate)

    @property
    def num_steps(self) -> int:
        """Sampler steps of each chain."""
        return self.num_burnin_steps + self.num_draws * self.num_steps_bw_draws

    def draw_at(self, step: int) -> int | None:
        """Which draw a step is, from 0 on; ``None`` during burn-in and between draws."""
        steps_after_burnin = step - self.num_burnin_steps
        if steps_after_burnin <= 0 or steps_after_burnin % self.num_steps_bw_draws:
            return None
        return steps_after_burnin // self.num_steps_bw_draws - 1

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that makes its results, for files and tables."""
        return asdict(self)


@names_checked
@dataclass(frozen=True)
class Compute:
    """How a computation is run. None of it changes a number beyond the rounding of float32.

    >>> Compute(device="cpu", progress=False)
    Compute(device='cpu', runs_per_pass=None, compile=False, executor=None, timeout=None,
            keep_states=False, progress=False)

    Args:
        device: where to sample; ``None`` is where the model is. Elsewhere, one copy is made there.
        runs_per_pass: how many chains go through the model together. ``None`` fits them into a
            quarter of the free memory, on a CPU into 256 MB at most (larger passes leave the cache
            and are slower). Noise and minibatches do not depend on it.
        compile: pass the model's forward through ``torch.compile``. Needs a C++ compiler, on GPUs
            triton, and a minute before the first step. For GPUs; two CPU cores gain nothing.
        executor: where the cells of :func:`rllc.track` are computed. ``None``: in this process. A
            number: in so many processes with one thread each. A list of devices such as
            ``["cuda:0", "cuda:1"]``: a process for each. Or any ``concurrent.futures.Executor``.
        timeout: seconds that one cell of :func:`rllc.track` may take; ``None``: any. A process of
            ours that takes longer is ended and replaced, the cell is failed, and the next call
            tries it again. An executor of yours is given up once it has finished nothing for so
            long. It needs an ``executor``: a cell in this process can be ended by nobody.
        keep_states: keep what chains need to go on, for ``rllc.sample(..., resume=draws)``: for
            each chain 4 bytes a weight (8 with rmsprop_sgld and sghmc) and 5 kB on a CPU.
        progress: show a bar.

    Raises:
        InputError: ``runs_per_pass`` is not a positive integer, ``timeout`` is given without
            ``executor``, or another is of the wrong kind.
    """

    device: str | None = None
    runs_per_pass: int | None = None
    compile: bool = False
    executor: Any = None
    timeout: float | None = None
    keep_states: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("compile", "keep_states", "progress"):
            value = getattr(self, name)
            must_be("Compute", name, value, isinstance(value, bool), "True or False")
        right = self.device is None or isinstance(self.device, str | torch.device)
        must_be("Compute", "device", self.device, right, "such as 'cpu' or 'cuda'")
        if self.timeout is not None:
            right = is_real(self.timeout) and self.timeout > 0
            must_be("Compute", "timeout", self.timeout, right, "a number of seconds above 0")
            expected = "given with an `executor`, such as Compute(executor=4, timeout=600)"
            must_be("Compute", "timeout", self.timeout, self.executor is not None, expected)
        if self.runs_per_pass is not None:
            check_counts("Compute", runs_per_pass=(self.runs_per_pass, 1))


def check_counts(owner: str, **counts: tuple[object, int]) -> None:
    """Refuse what is not an integer of at least the second number.

    Raises:
        InputError: names the first such argument.
    """
    for name, (value, least) in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(
                f"{owner}: `{name}` must be an integer of at least {least}, got {value!r}."
            )


def probed(num_probes: int, num_draws: int, target_se: float | None) -> list[int]:
    """Choose the draws whose step is looked at twice.

    Of the n-th draws, those with the n that 2 divides most often, later ones first:

    >>> probed(5, 100, None), probed(5, 200, None)
    ([31, 47, 63, 79, 95], [63, 95, 127, 159, 191])

    They are spread over all but the beginning. The order in which draws are preferred does not
    depend on ``num_draws``, so whatever a longer run looks at among its first draws, a shorter one
    has looked at, too, and chains can be continued.

    With ``target_se`` a refinement may end at any twentieth draw, so these are taken, and a
    refinement's own are those before its end.
    """
    wanted = min(num_probes, num_draws)
    if target_se is not None and num_draws >= 20:
        return [draw for draw in range(19, 20 * wanted, 20) if draw < num_draws]
    preferred: list[int] = []
    power = 1 << num_draws.bit_length() >> 1
    # Odd multiples of each power of 2, the largest power first: draws may be millions.
    while power and len(preferred) < wanted:
        most = num_draws // power
        odd_multiples = range(most - (most % 2 == 0), 0, -2)
        for multiple in odd_multiples[: wanted - len(preferred)]:
            preferred.append(multiple * power)
        power //= 2
    return sorted(number - 1 for number in preferred)
