"""Average uniqueness: how much of a label's time no other label tells about.

Labels that look several bars ahead overlap: rows beside each other tell nearly the same story again, and a loss that
counts each of them alike hears it many times. The uniqueness of a label is the mean, over its bars, of one over the
number of labels that span that bar (López de Prado, "Advances in financial machine learning", 2018, section 4.4). Its
sum over the rows is about the number of labels that share no bar.

When it fails: labels of one fixed horizon at every bar overlap alike, so that their weights are all but equal; what
differs are barriers, which are touched early or late, and rows that are dense at some times and rare at others.

Legend: N labels of one symbol.
"""

import numpy as np

from ml_workbench_service.contracts.market import Floats, Ints


def average_uniqueness(begins_N: Ints, ends_N: Ints) -> Floats:
    """(N,) in (0, 1], 1 where a label shares no bar.

    Args:
        begins_N: the place of the first bar of each label's time.
        ends_N: of its last one, itself included; not before the first.
    """
    if not len(begins_N):
        return np.zeros(0)
    num_bars = int(ends_N.max()) + 2
    changes_B = np.bincount(begins_N, minlength=num_bars) - np.bincount(ends_N + 1, minlength=num_bars)
    labels_B = np.cumsum(changes_B)
    shares_B = np.divide(1.0, labels_B, out=np.zeros(num_bars), where=labels_B > 0)
    before_B = np.concatenate([[0.0], np.cumsum(shares_B)])
    return np.asarray((before_B[ends_N + 1] - before_B[begins_N]) / (ends_N + 1 - begins_N))
