"""Saves that leave no memory behind: tensorstore (0.1.86) keeps every key and value of a JSON object it gives out.

Its `JsonToPyObject` (python/tensorstore/json_type_caster.cc) hands references that it owns to `PyDict_SetItem`, which
takes its own, so that each is counted once too often and never freed. orbax (0.12.8) asks at every save for the JSON of
the kvstore's spec, twice an array, and for the metrics of the drivers: together some 0.5 KiB an array.
"""

import functools
from typing import Any

import tensorstore as ts

_BYTES_WRITTEN = "/tensorstore/kvstore/"  # what orbax asks for at each save


@functools.cache
def keep_nothing() -> None:
    """Answers those two questions, from here on, without tensorstore's JSON; every other one as before.

    Of a spec that is a file's path and nothing else (not, as yet, of gs:// and s3://) the JSON is made here. Metrics of
    the drivers are empty: orbax only logs a throughput of them.
    """
    to_json, metrics = ts.KvStore.Spec.to_json, ts.experimental_collect_matching_metrics

    def spec_to_json(spec: ts.KvStore.Spec, include_defaults: bool = False) -> Any:
        json = {"driver": "file", "path": spec.path}
        return json if not include_defaults and _is(spec, json) else to_json(spec, include_defaults)

    def other_metrics(metric_prefix: str = "", include_zero_metrics: bool = False) -> list[Any]:
        return [] if metric_prefix == _BYTES_WRITTEN else metrics(metric_prefix, include_zero_metrics)

    ts.KvStore.Spec.to_json = spec_to_json  # type: ignore[method-assign, assignment]
    ts.experimental_collect_matching_metrics = other_metrics


def _is(spec: ts.KvStore.Spec, json: Any) -> bool:
    try:
        return bool(spec == ts.KvStore.Spec(json))
    except ValueError:  # the path of another driver, which no file can have
        return False
