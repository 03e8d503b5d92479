"""Expected calibration error (Guo et al. 2017, arXiv 1706.04599, equation 3).

Shapes:  N examples of a split
"""

import numpy as np

NUM_BINS = 15  # as in the paper


def bins_of(confidences: np.ndarray, num_bins: int) -> np.ndarray:
  """Returns the number of the bin [N] of each confidence [N].

  Bin b has the confidences above b / num_bins, up to (b + 1) / num_bins.
  """
  return np.ceil(confidences * num_bins).astype(int).clip(1, num_bins) - 1


def expected_calibration_error(
  confidences: np.ndarray, right: np.ndarray, num_bins: int = NUM_BINS
) -> float:
  """Returns the mean distance of accuracy and confidence over equal bins.

  It is Σ (n_b / N) |accuracy_b − mean confidence_b|, over the bins b of
  `bins_of`.

  Args:
    confidences: probabilities of the predicted classes [N].
    right: whether the predictions are correct [N].
    num_bins: number of bins.
  """
  confidences = np.asarray(confidences, np.float64)
  bins = bins_of(confidences, num_bins)
  gaps = np.bincount(bins, np.asarray(right, float) - confidences, num_bins)
  return float(np.abs(gaps).sum() / len(confidences))
