"""Queries split over two devices give what one device gives: values, gradients and dropout."""

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")
jnp = jax.numpy
gat = pytest.importorskip("gatv2.jax")
P, NamedSharding = jax.sharding.PartitionSpec, jax.sharding.NamedSharding

N, M, H, F = 6, 5, 2, 3
OPTIONS: dict[str, Any] = {"dropout": 0.4, "seed": 2**40 + 5}


def test_two_devices() -> None:
    """In a process of its own: the number of devices is settled when JAX starts."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["dense", "sparse", "numbering"]


def main() -> None:
    mesh = jax.make_mesh((2,), ("queries",))
    rng = np.random.default_rng(0)
    query, key, attn, cotangent = (
        jnp.asarray(rng.normal(size=shape)) for shape in ((N, H, F), (M, H, F), (H, F), (N, H, F))
    )
    mask = rng.random((N, M, 1)) < 0.5
    mask[1] = False
    over_queries, everywhere = NamedSharding(mesh, P("queries")), NamedSharding(mesh, P())
    features = (
        jax.device_put(query, over_queries),
        jax.device_put(key, everywhere),
        jax.device_put(attn, everywhere),
    )
    expected = value_and_gradients(attend, cotangent, mask)(query, key, attn)

    on_two = value_and_gradients(attend, cotangent, jax.device_put(mask, over_queries))
    assert_same(on_two(*features), expected)
    print("dense")

    parts = jax.device_put(gat.Graph.from_mask(mask).split(2), over_queries)
    assert_same(
        value_and_gradients(shard(attend_part, mesh), cotangent, parts)(*features), expected
    )
    compiled = jax.jit(shard(attend_part, mesh)).lower(*features, parts).compile()
    assert not any(
        word in compiled.as_text() for word in ("all-reduce", "all-gather", "all-to-all")
    )
    print("sparse")

    def unnumbered(query: Any, key: Any, attn: Any, parts: Any) -> Any:
        of_first = jnp.broadcast_to(jnp.arange(parts.query_id.shape[1]), parts.query_id.shape)
        return attend_part(query, key, attn, replace(parts, query_id=of_first))

    wrong = jax.jit(shard(unnumbered, mesh))(*features, parts)
    with pytest.raises(AssertionError):  # what the comparison must reject: other edges dropped
        assert_same([wrong], expected[:1])
    print("numbering")


def attend(query: Any, key: Any, attn: Any, graph: Any) -> Any:
    return gat.gatv2_attention(query, key, attn, graph, **OPTIONS)


def attend_part(query: Any, key: Any, attn: Any, parts: Any) -> Any:
    """On one device: its queries, all keys, and its part of the graph."""
    return attend(query, key, attn, jax.tree.map(lambda x: x[0], parts))


def shard(function: Any, mesh: Any) -> Any:
    specs = (P("queries"), P(), P(), P("queries"))
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=P("queries"))


def value_and_gradients(function: Any, cotangent: Any, graph: Any) -> Any:
    def both(query: Any, key: Any, attn: Any, graph: Any) -> Any:
        out, pullback = jax.vjp(lambda *features: function(*features, graph), query, key, attn)
        return out, *pullback(cotangent)

    return lambda *features: jax.jit(both)(*features, graph)


def assert_same(actual: Any, expected: Any) -> None:
    assert len(actual[0].sharding.device_set) == 2
    assert actual[0].sharding.spec[0] == "queries"
    for a, e in zip(actual, expected, strict=True):
        assert np.allclose(a, e, rtol=1e-10, atol=1e-10)


if __name__ == "__main__":
    main()
