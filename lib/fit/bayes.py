"""A Bayesian cross-check with a size effect, sampled by NUTS (numpyro, optional: `pip install .[bayes]`)."""

import numpy as np

from lib.io import InputError


def bayes_law(data, draws=1000, seed=0, level=0.95):
    """Posterior of power + floor with a deviation that all seeds of a size share.

    y_ij = c + A exp(-alpha d_i) + u_i + e_ij with u_i ~ N(0, between), e_ij ~ N(0, within). Priors, in units of the
    range of the size means: A ~ N(1, 1), c ~ N(last mean, 1), alpha x span of log P ~ LogNormal(log 5, 1), between and
    within half-normal of scale 0.1.

    Parameters
    ----------
    data : Ladder
    draws : int
        Kept from each of two chains, after as many of warm-up.

    Returns
    -------
    dict
        alpha, c, size_effect, seed_noise: {"mean", "interval"}; r_hat (largest), divergences.

    Raises
    ------
    InputError
        When numpyro is not installed.
    """
    try:
        import jax
        import numpyro
        from numpyro import diagnostics, infer
    except ImportError as missing:
        raise InputError("the Bayesian cross-check needs numpyro: pip install .[bayes]") from missing
    numpyro.enable_x64()
    kernel, two = infer.NUTS(_model(data), target_accept_prob=0.95), {"num_chains": 2, "chain_method": "vectorized"}
    sampler = infer.MCMC(kernel, num_warmup=draws, num_samples=draws, progress_bar=False, **two)
    sampler.run(jax.random.PRNGKey(seed), extra_fields=("diverging",))
    chains = {name: np.asarray(value) for name, value in sampler.get_samples(group_by_chain=True).items()}
    scale = _scale(data)
    quantities = {
        "alpha": chains["steepness"] / data.d[-1],
        "c": data.means[-1] + scale * chains["floor"],
        "size_effect": scale * chains["between"],
        "seed_noise": scale * chains["within"],
    }
    tails = [(1 - level) / 2, (1 + level) / 2]
    found = {
        name: {"mean": float(x.mean()), "interval": np.quantile(x, tails).tolist()} for name, x in quantities.items()
    }
    r_hat = max(float(diagnostics.split_gelman_rubin(x)) for x in quantities.values())
    return found | {"r_hat": r_hat, "divergences": int(np.sum(sampler.get_extra_fields()["diverging"]))}


def _scale(data):
    return np.ptp(data.means) or 1.0


def _model(data):
    """The model as numpyro wants it: a function that names its parameters and what was observed."""
    import numpyro
    from jax import numpy as jnp
    from numpyro import distributions as priors

    scale, spare = _scale(data), len(data.losses) - len(data.d)
    means, squares = (data.means - data.means[-1]) / scale, data.within / scale**2

    def model():
        alpha = numpyro.sample("steepness", priors.LogNormal(np.log(5.0), 1.0)) / data.d[-1]
        c = numpyro.sample("floor", priors.Normal(0.0, 1.0))
        amplitude = numpyro.sample("amplitude", priors.Normal(1.0, 1.0))
        between, within = (numpyro.sample(name, priors.HalfNormal(0.1)) for name in ("between", "within"))
        # Size means and the scatter within sizes say all that the runs do; the u_i are integrated out.
        spread = jnp.sqrt(between**2 + within**2 / data.seeds)
        numpyro.sample("means", priors.Normal(c + amplitude * jnp.exp(-alpha * data.d), spread), obs=means)
        numpyro.factor("seeds", -spare * jnp.log(within) - squares / (2 * within**2))

    return model
