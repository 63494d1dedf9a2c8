"""V2 against V1 while both serve: is the ratio of their bad rates above a margin?

In one stratum (a bucket on a host) V1 served n1 requests and V2 n2, of which k1 and k2 were bad. Given
K = k1 + k2, and as long as bad requests are rare, k2 is binomial with share r n2 / (r n2 + n1) at a
ratio r of the bad rates: whatever made that bucket on that host a bad one for both cancels out. The
likelihood ratio of r1 > margin against the margin is at most 1 on average for every r up to the margin
(the family has a monotone likelihood ratio), so its product over buckets, mixed over r1, is an
e-process: valid at every look (cfn.judge.sequential; the idea is that of Lindon and Malek, "Anytime-
valid inference for multinomial count data", arXiv 2011.03567, and of arXiv 2205.14762).

It can only say that V2 is worse. Too few bad requests to tell is no obstacle to PASS, which the
absolute limits decide.
"""

import numpy as np

from cfn.judge.sequential import Floats, running_log_e

_ALTERNATIVES = (1.15, 1.3, 1.6, 2.0, 3.0, 5.0, 10.0)  # in multiples of the margin


def log_e_worse(bad: Floats, requests: Floats, margin: float) -> Floats:
    """Logarithm of the evidence, after each bucket, that V2's bad rate is more than `margin` times V1's.

    Both arrays have the shape (buckets, hosts, 2): V1, then V2. A stratum in which one arm served
    nothing, or nothing was bad, says nothing.
    """
    both = (requests > 0).all(axis=2)
    weight_v1 = np.where(both, requests[..., 0], 1.0)
    weight_v2 = np.where(both, requests[..., 1], 1.0)
    bad_v1 = np.where(both, bad[..., 0], 0.0)
    bad_v2 = np.where(both, bad[..., 1], 0.0)
    total_at_margin = margin * weight_v2 + weight_v1
    columns = []
    for multiple in _ALTERNATIVES:
        total = margin * multiple * weight_v2 + weight_v1
        shrunk = np.log(total_at_margin / total)  # of V1's share of the bad
        grown = shrunk + np.log(multiple)
        columns.append((bad_v2 * grown + bad_v1 * shrunk).sum(axis=1))
    return running_log_e(np.stack(columns, axis=1))


def ratio(bad: Floats, requests: Floats) -> float | None:
    """The ratio of the bad rates, V2 to V1, with strata weighted as Mantel and Haenszel do (1959); None
    if V1 had nothing bad, or one of them nothing at all."""
    total = requests.sum(axis=2)
    weight = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
    above = (bad[..., 1] * requests[..., 0] * weight).sum()
    below = (bad[..., 0] * requests[..., 1] * weight).sum()
    return float(above / below) if below > 0 else None
