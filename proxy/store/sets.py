"""The closed sets that columns have their values from."""

from __future__ import annotations

STATUSES = ("success", "error", "timeout", "cancelled", "rejected")
USAGE_SOURCES = ("provider", "drained", "estimated", "none")
COST_SOURCES = ("provider", "config", "catalog", "none")
SEVERITIES = ("info", "warning", "error", "critical")
LIMIT_SOURCES = ("header", "body", "local", "config")
RESET_PERIODS = ("monthly", "daily", "never")
CLIENT_LISTS = ("models", "providers", "tags", "budgets")
"""JSON lists of texts."""

TOLD = ("/track/inference", "python")
"""Endpoints of calls that did not pass through here: somebody told us of them."""
