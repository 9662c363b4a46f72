"""Metrics where an item, or a pixel, has one class: confusion matrix, F1, area under the ROC curve."""

from __future__ import annotations

import torch
from torch import Tensor


def confusion_matrix(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """How often each class was given for each.

    Args:
        predicted: int64, any shape.
        labels: int64, of that shape; those outside of the classes, as of pixels without a label, are left out.
        num_classes: of both.

    Returns:
        int64 (C, C): the true class of a row, the predicted one of a column.
    """
    known = (labels >= 0) & (labels < num_classes)
    pairs = labels[known] * num_classes + predicted[known]
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def f1_of_classes(confusion: Tensor) -> Tensor:
    """F1 of each class, 2·TP / (2·TP + FP + FN); 0 for a class that neither occurs nor is predicted.

    Args:
        confusion: (C, C), as by `confusion_matrix`.

    Returns:
        float64 (C,).
    """
    found = confusion.sum(0) + confusion.sum(1)
    return 2 * confusion.diagonal().double() / found.clamp_min(1)


def area_under_roc(scores: Tensor, positive: Tensor) -> float:
    """The share of pairs of a positive and another item in which the positive has the higher score; ties count half.

    Args:
        scores: (N,).
        positive: bool (N,), with at least one of each kind.
    """
    values, place = torch.unique(scores, return_inverse=True)
    others = torch.bincount(place[~positive], minlength=len(values)).double()
    wins = others.cumsum(0) - others / 2  # of a positive with each score
    return float(wins[place[positive]].mean() / others.sum())
